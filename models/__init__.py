"""The reference models that ship with scibench-data, one folder each.

To add one, write one folder; nothing else is edited.

* ``model.py``: the whole model in one file: ``Config``, ``build``, ``optimizer``, ``evaluate``,
  ``compare``, ``figures``.
* ``README.md``: the model card, with the scores of ``results/*.json``.
"""
