"""Statistics of whole models: measured anew on data, copied to averaged weights, exchanged, examined.

`recalibrate` is the call, `measuring` its passes, `gathering` one pass; `tracked` says which layers a model has and
what they record, `writing` puts new values in all at once. `exchange` and `foreign` know other frameworks' arrays.
"""
