"""Starts `experiments.main` elsewhere: several processes here (local), a TPU slice (tpu_vm), a Slurm cluster, Kubernetes (gke).

Every launcher is run as `python -m launch.NAME [its flags] -- [flags of experiments.main]`; what stands behind `--` arrives
unchanged. They need nothing but Python and the tool of the place (gcloud, sbatch, kubectl).
"""
