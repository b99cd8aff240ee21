"""The steps of the chain, and the chain itself.

steps.py is the table of the steps, chain.py connects them as a KFP pipeline, local_run.py and
host_runner.py run it on this machine. Each step is a program in the file of its name: prepare,
search, export, evaluate, deploy, finish. step.py has what they share.
"""
