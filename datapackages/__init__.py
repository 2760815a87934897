"""The data packages that ship with scibench-data, one folder each.

To add one, write one folder; nothing else is edited.

* ``<version>/datapackage.json``: what it is, a Data Package v2 descriptor.
* ``releases.json``: version -> commit, date, what changed.
* ``reader.py``: ``read(folder)`` gives its raw files as a lazy `xarray.Dataset`.
* ``simulate.py``: ``simulate(path, output, **parameters)`` writes one file of the sample.
* ``README.md``: the data card.
"""
