"""Options of every verb, each declared once with its default, meaning, range and flag.

:mod:`act_kit.overrides` composes them from presets and the command line.
"""
