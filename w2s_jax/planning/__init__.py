"""What a run will need, before it is run: each of its programs compiled on shapes alone, for devices that need not be here.

    topology   device words (`v5e:4x4`, `gpu:h200x8`, `cpu:2`) -> devices, their memory and peak rates
    phases     a config -> the programs that a run of it calls, with the shapes, places and settings that it calls them with
    hlo        a compiled program -> matrix products, memory traffic, bytes received, with loops multiplied out
    budget     a program compiled: what it needs on each device, against what is there
    search     the smallest change of a config with which everything fits

No weights, no data, no accelerator; `experiments/plan.py` prints the table.
"""
