from .sb3 import FollowerSpec, build_model, follower_name, follower_of_file, takes  # noqa
