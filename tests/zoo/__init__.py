"""Tiny random pipelines of many stock diffusers classes, and the calls that people make of them.

`tiny.py` has one text-to-image builder a family; here are the variants that take pictures, control nets, clips, and
families of their own. Nothing is downloaded; a run takes well under a second.
"""
