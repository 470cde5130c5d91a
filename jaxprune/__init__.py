"""jaxprune: prune any JAX network in any training loop, and measure what pruning saves.

Import subpackages by name; each imports only its own dependencies:

    from jaxprune import scores, masks, sparse_training

Scores: how much each weight matters; a tree like the parameters, higher means keep.

    scores.snip(loss_fn, params, batches)          loss_fn(params, batch) -> scalar
    scores.grasp(loss_fn, params, batches)         batches: a list of batches
    scores.synflow(apply_fn, params, inputs)       apply_fn(params, inputs) -> outputs
    scores.magnitude(params)
    scores.wanda(fn, params, batches)              fn(params, batch) -> outputs; also ria
    scores.fisher(loss_fn, params, batches)        also prospr
    scores.taylor(loss_fn, params, batches)        for channels
    scores.random(key, params)                     also lamp, ntk_sap

Masks: a bool tree like the parameters; True keeps.

    masks.select(scores, density)                  exact; scope="layer", mask=, prunable=
    masks.erk(params, density)                     a budget, in place of a density
    masks.apply(params, mask)                      pruned weights become zero
    masks.summary(mask)                            table of layers, to print
    masks.save(path, mask), masks.load(path, like=params)
    tree.prunable(params, include=, exclude=)      which leaves, by name patterns

Training and pruning in levels:

    sparse_training.hold_pruned(optimizer, mask)   any optax optimizer, in any loop
    sparse_training.rigl(key, optimizer, density, steps)    also set, static, gradual, acdc
    reconstruct.sparsegpt(fn, params, batches, density)     without training: mask and weights
    prune.prune(score_fn, params, density, rounds=100)    score_fn(params, mask=mask)
    imp.init(params, key), imp.step(state, train_fn, density, rewind="early")
    checkpoint.levels(folder, state, step, densities)    runs the levels; resumes a killed run
    checkpoint.save(path, tree), checkpoint.load(path, like=tree)

Networks, cost and size:

    models.functional(nnx_module), models.create("resnet20", key=key), models.flow(model)
    train.fit(model, mask, examples, training, key)    trains a models.Model; images or others
    data.find("cifar10"), data.load(files)         digits, MNIST, CIFAR, ...
    profiling.macs(fn, params, x), profiling.latency(fn, *args), profiling.measure(fn, *args)
    masks.health(fn, params, mask, x)              layers, live paths, collapse
    sharding.make_mesh(data=8), sharding.shard_params(params, mesh)
    graph.channels(fn, params, x)                  what can only be removed together
    masks.select_channels(groups, scores, 0.5, cost="macs")    neurons, channels, heads
    compact.compact(fn, params, mask, x)           a smaller function, same outputs
    compact.save(folder, fn, params, x), compact.load(folder)
    graph.kernels(fn, params, x), graph.trace(fn, params, x)   any function as data

Studies compare methods on data sets: `python scripts/study.py run digits`. A file with your
network, data and scores is a study too: experiments/own_study.py.
"""

__version__ = "0.2.0"
