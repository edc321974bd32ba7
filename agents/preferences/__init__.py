"""Learning a reward from preferences: the parts, one file each. The methods stand in ``leaders`` and ``baselines``.

planner        a follower that plans in a known model
atari          Atari games
labels         what is asked and answered, labelled pairs kept; labellers that answer from the true return or by a program
views          what the page shows of a segment
files          preference files, read as far as they are whole; a labeller whose answers come from outside and late, through one
page           such a file on a page in the browser, where a person answers
fragmenters    which pairs are asked about: random ones, or those that an ensemble disagrees about
reward_model   the nets, ensembles, and the normalised reward that followers are paid
training       the Bradley-Terry loss, and fitting a reward model by it; an explosion is caught
worlds         parallel environments, their true returns, exact regret where the model is known
recorded       a follower that is paid the learned reward, and whose steps are recorded
asking         questions put to a labeller, open and answered
config         settings, and the record of a learned reward
method         what happens in an iteration, over a state record, and what the leaders show beside what all do

``wrappers.SegmentRecorder`` records and cuts segments, ``wrappers.LearnedReward`` pays the learned reward.
"""
