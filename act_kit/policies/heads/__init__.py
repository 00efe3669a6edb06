"""Heads: the models that predict chunks, one file each.

A file ``NAME.py`` defines the model ``policy.name=NAME`` and its options, and is imported when that name is chosen
(:func:`act_kit.config.policy.load_head`). The names of its presets begin with the name: ``NAME_small``.
"""
