# Every target is one or two drbench lines; logic lives in Python.
PYTHON ?= python3
BIN := .venv/bin
# Certification: most rows on the same images; a diffusion classifier affords few, and has a figure of its own.
FEW := $(wildcard benchmarks/digits/rdc-*.yaml)
DIGITS := $(filter-out $(FEW),$(wildcard benchmarks/digits/*.yaml))
FULL_FEW := $(wildcard benchmarks/digits/full/rdc-*.yaml)
FULL := $(filter-out $(FULL_FEW),$(wildcard benchmarks/digits/full/*.yaml))
# The longest runs first, so that all cores end at about the same time.
SLOW := $(foreach name,rdc rdc-rdc rdc-bpda rdc-dc rdc-lm multiscale-cascade diffpure,%/$(name).yaml)
slow_first = $(foreach name,$(SLOW),$(filter $(name),$(1))) $(filter-out $(SLOW),$(1))
ATTACKS := $(call slow_first,$(wildcard benchmarks/digits/attack/*.yaml))
FULL_ATTACKS := $(call slow_first,$(wildcard benchmarks/digits/full/attack/*.yaml))
MORE := $(call slow_first,$(wildcard benchmarks/digits/more/*.yaml))
PAPERS := rcm-cifar10 rcm-imagenet multiscale-cifar10 multiscale-imagenet consistency-cifar10 consistency-imagenet64 \
  rdc-cifar10 ndc-cifar10 ndc-imagenet
TABLES := $(PAPERS) cost digits
.DEFAULT_GOAL := help
.PHONY: help setup tables $(TABLES:%=table-%) digits digits-full digits-more train-digits train-multiscale \
  train-rcm train-rcm-seeds rcm-ablation train-consistency consistency-ablation train-rdc claims-rdc test test-slow \
  lint bench figures readme gallery verify report clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
	@echo "check-NAME      conformance suite of one defense"
	@echo "table-NAME      a paper's table: what is missing, the runs that can be made, the table: $(TABLES)"

setup: $(BIN)/.installed  ## virtual environment in .venv, with drbench installed in it

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-compile --no-deps torchattacks==3.5.1  # a peer in tests; pins an old requests
	@$(BIN)/python -m compileall -qq -j 0 $(BIN)/../lib || true  # on all cores, pip takes one; some templates do not parse
	@touch $@

digits: setup  ## the main job: certify every defense on 100 real digits, attack most on 10 or 20, tables and plots (minutes)
	runs=$$($(BIN)/drbench run $(DIGITS) $(FEW) $(ATTACKS) run.executor=processes) && \
	all=$$(echo "$$runs" | grep /runs/) && attacked=$$(echo "$$runs" | grep /attacks/) && \
	few=$$(echo "$$all" | grep /diffusion_classifier-) && most=$$(echo "$$all" | grep -v /diffusion_classifier-) && \
	{ $(BIN)/drbench table $$all --out results/digits/certified && \
	  $(BIN)/drbench plot $$most --out results/digits/certified & } && \
	$(BIN)/drbench plot $$few --out results/digits/certified-few && \
	$(BIN)/drbench table $$attacked --out results/digits/robust && \
	$(BIN)/drbench plot $$attacked --out results/digits/robust && wait $$!

digits-full: setup  ## the same on all 500 test images, with more draws, attacked by preset standard (about an hour)
	$(BIN)/drbench run $(FULL) $(FULL_FEW) $(FULL_ATTACKS) run.executor=processes --out results/digits/full
	$(MAKE) figures

digits-more: setup  ## the dearest attacks of digits-full on 25 images instead of 10, and variants of the attacked (an hour)
	$(BIN)/drbench run $(MORE) run.executor=processes --out results/digits/more
	$(MAKE) figures

tables: $(TABLES:%=table-%)  ## every paper's table, as far as weights and data are here

table-digits: digits

table-cost: setup
	$(BIN)/drbench reproduce rcm-cost

$(PAPERS:%=table-%): table-%: setup
	$(BIN)/drbench reproduce $*

train-digits: setup  ## train the shipped weights from scratch
	$(BIN)/drbench train benchmarks/digits/train/classifier.yaml
	$(BIN)/drbench train benchmarks/digits/train/noise_augmented.yaml
	$(BIN)/drbench train benchmarks/digits/train/adversarial_training.yaml
	$(BIN)/drbench train benchmarks/digits/train/adversarial_training-l2.yaml
	$(BIN)/drbench train benchmarks/digits/train/denoiser.yaml
	$(MAKE) train-multiscale train-rcm train-consistency train-rdc

train-multiscale: setup  ## fine-tune the shipped denoiser and classifier for cascades
	$(BIN)/drbench train benchmarks/digits/train/multiscale-denoiser.yaml
	$(BIN)/drbench train benchmarks/digits/train/multiscale-classifier.yaml

train-consistency: setup  ## distil the shared denoiser into a consistency function, fine-tune it and its control
	for row in consistency consistency-tuned consistency-control consistency-tuned-ssl; do \
	$(BIN)/drbench train benchmarks/digits/train/$$row.yaml || exit 1; done

consistency-ablation: setup  ## what the parts of consistency purification are worth on digits, and what they do to images
	$(BIN)/python -m benchmarks.consistency_ablation
	$(BIN)/python -m benchmarks.purification benchmarks/digits/full/denoised-one_shot.yaml \
	benchmarks/digits/full/denoised-pf_ode.yaml benchmarks/digits/full/consistency*.yaml

train-rcm: setup  ## train the shipped weights of RCM, with and without pre-training, first seed
	$(BIN)/drbench train benchmarks/digits/train/rcm.yaml
	$(BIN)/drbench train benchmarks/digits/train/rcm-none.yaml

train-rcm-seeds: setup  ## train the shipped weights of RCM's other seeds
	for seed in 1 2; do for row in rcm rcm-none; do $(BIN)/drbench train benchmarks/digits/train/$$row.yaml \
	train.recipe.seed=$$seed train.checkpoint=digits/$$row-$$seed || exit 1; done; done

rcm-ablation: setup  ## what the parts of RCM are worth on digits: the table of its README (an hour)
	$(BIN)/python -m benchmarks.rcm_ablation

train-rdc: setup  ## distil the multi-head network of the diffusion classifier from the shipped denoiser
	$(BIN)/drbench train benchmarks/digits/train/rdc-multihead.yaml

claims-rdc: setup  ## clean accuracy, costs and robustness of the diffusion classifiers: the tables of their README
	$(BIN)/python -m benchmarks.diffusion_classifier_claims

test: setup  ## the fast tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8

test-slow: setup  ## the tests that take longer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --maxprocesses 8 --dist worksteal

lint: setup  ## style and layering
	$(BIN)/ruff check .
	$(BIN)/python -m pytest tests/test_layering.py

bench: setup  ## speed of the engine against bare forward passes and a plain loop; draws that early stopping saves
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.modes
	$(BIN)/python -m benchmarks.attacks
	$(BIN)/python -m benchmarks.workers
	$(BIN)/python -m benchmarks.diffusion_classifier

figures: setup  ## tables, plots, claims and report of digits-full, redrawn from its records, without torch
	$(BIN)/python -m benchmarks.figures

readme: setup  ## the tables of the README, from those in results/
	$(BIN)/python -m benchmarks.readme

# Of the first picture, images chosen by hand: one that a cascade settles late, and one that all get wrong.
gallery: setup  ## pictures of digits-full: images with noise, purified, attacked, with recorded verdicts
	$(BIN)/drbench gallery $(addprefix results/digits/full/runs/,denoised-one_shot denoised-pf_ode-3 \
	consistency-tuned_feat_aux diffpure-sde-10 multiscale) --images 615 5 --out results/digits/full/gallery-certified
	$(BIN)/drbench gallery $(foreach name,undefended adversarial_training denoised-one_shot diffpure-sde-5,\
	$(firstword $(wildcard results/digits/full/attacks/$(name)/linf-0.125-*))) --first 3 \
	--out results/digits/full/gallery-attacked
	$(BIN)/drbench gallery $(foreach name,adversarial_training adversarial_training-l2 \
	diffusion_classifier-DC__multi-head diffusion_classifier-RDC__multi-head,\
	$(firstword $(wildcard results/digits/full/attacks/$(name)/stadv-0.2-*))) --first 3 \
	--out results/digits/full/gallery-unseen

report: setup  ## one HTML page of the recorded runs, from tables down to the votes of each image
	$(BIN)/drbench report results/digits/full results/digits/more --out results/report.html

verify: setup  ## recompute every certificate in results/ from its evidence
	$(BIN)/drbench verify results

check-%: setup
	$(BIN)/drbench check $*

clean:  ## caches and unfinished trainings; never results/
	rm -rf .pytest_cache .ruff_cache .drbench build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
