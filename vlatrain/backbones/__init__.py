"""Backbone families described as data (`conf/model/*.yaml`), their loading, and the operations tasks may ask of them.

`describe` needs no torch; `loading` does. Import the submodules.
"""
