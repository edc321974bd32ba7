"""Learning a reward from preferences: the parts, one per file. The leaders are in ``leaders`` and ``baselines``.

planner        a follower that plans in a known model
atari          Atari games
labels         queries, answers and labelled pairs; labellers that use the true return or a program
views          what the page shows of a segment
files          preference files, which tolerate damage; a labeller that gets its answers through such a file
page           a web page on which a person answers the queries of a preference file
fragmenters    how pairs are chosen: at random, or by an ensemble's disagreement
reward_model   the networks, ensembles, and the normalised reward that followers are paid
training       the Bradley-Terry loss, fitting a reward model by it, and the check for exploding models
worlds         parallel environments, their true returns, exact regret where the model is known
recorded       a follower that is paid the learned reward, and whose steps are recorded
asking         the open and answered questions to a labeller
config         settings, and the record of a learned reward
method         one iteration, on a state record, and what these leaders have beyond other leaders

``wrappers.SegmentRecorder`` records and cuts segments; ``wrappers.LearnedReward`` pays the learned reward.
"""
