"""Top-level help text, kept as a constant because the imports of LightningCLI take seconds."""

USAGE = """\
usage: python -m a2d_lightning COMMAND [options]

Finds small, fast agents for deep reinforcement learning (A2D, arXiv 2012.13091).

training and scores
  fit         train a teacher, search an architecture or retrain a derived agent, as set by --config
  validate    score a checkpoint on the evaluation games used during training
  test        score a checkpoint on 30 full games
files
  export      an agent as safetensors with its card, as ONNX or for torch.export
  curves      a run's metrics as one picture
  compare     several runs' scores in one picture
  random_architecture
              random networks, of the cost of a searched one or over a range of costs
  derive      a search's networks within MACs limits
studies
  bank        train many networks with one recipe, scored in one table
  judge       how well searches rank a bank's networks, and how good the searched networks are

the three stages; add --config configs/scale/laptop.yaml for a few CPU cores
  python -m a2d_lightning fit --config configs/teacher.yaml
  python -m a2d_lightning fit --config configs/search.yaml
  python -m a2d_lightning fit --config configs/retrain.yaml --model.architecture runs/search/architectures/last.json

options of a command:          python -m a2d_lightning fit --help
of a stage's model:            python -m a2d_lightning fit --model.help SearchModule
full config of a run:          python -m a2d_lightning fit --config configs/search.yaml --print_config
"""
