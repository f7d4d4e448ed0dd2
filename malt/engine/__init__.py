"""Engine that turns a config into a dataset version, shared by Python, the command line and Prefect's flows.

    job = read_job(spec)                       # job.py: spec, prompts, questions, screening; read and checked once
    filled = await fill(job, Run())            # fill.py: ask for the samples that the store lacks
    built = build(job)                         # build.py: the store's trees -> a version; no model call
    summary = summarise(job, filled, built, s) # build.py: the output of `malt run --json`

`runner.run_job(job)` does the last three under the dataset's lock. `make_job` makes a job of questions that were read
already, `job.only(questions)` one of a part of them. `fill_batch(job, run)` is `fill` for another thread or process,
without the survey of the store. `replay.read_trees(job.questions, job.source)` reads the trees, graded and valued.

The argument `ask` of `fill` carries out the requests: `ask_directly` in this process, `ask_in_batches` (in
batch_mode.py) through providers' batch APIs, or a flow's own through Prefect's tasks.
"""
