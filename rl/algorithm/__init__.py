"""The algorithm as pure functions: no file, no clock, no configuration. The formulas' source is Meta's CWM paper.

advantages   returns of one group -> advantages          losses     tensors of one batch -> a scalar
filters      groups -> groups worth training on          batch      groups -> the next batch
controls     what must not learn
staleness    how old an episode is, and how many may be started so that none gets too old
"""
