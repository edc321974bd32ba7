"""Leaders: methods that learn the leader's parameter."""
