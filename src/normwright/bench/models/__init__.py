"""Which batch norms the models of the package transformers have, and what follows each.

`following` watches one network, `architectures` builds those of transformers, `counting` counts them into
`models.json`. `counted` reads that file, and takes no framework; `page` tells it. `__main__` is the command.
"""
