"""From a config to a dataset version, by one engine: Python, the command line and Prefect's flows call the same.

    job = read_job(spec)                       # job.py: spec, prompts, questions, screening; read and checked once
    filled = await fill(job, Run())            # fill.py: ask for what the store lacks of the job's trees
    built = build(job)                         # build.py: the store's trees -> a version; nobody is asked
    summary = summarise(job, filled, built, s) # build.py: the words of `malt run --json`

`runner.run_job(job)` does all four under the dataset's lock. `make_job` takes questions that were read already,
`job.only(questions)` a part of them. `fill_batch(job, run)` is `fill` for another thread or process, without a survey
of what is stored. `replay.read_trees(job.questions, job.source)` reads the trees, graded and valued.

How requests are carried out is the argument `ask` of `fill`: `ask_directly` in this process, `ask_in_batches` (in
batch_mode.py) through providers' batch APIs, or a flow's own by Prefect's tasks.
"""
