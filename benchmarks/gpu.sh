#!/bin/bash
# What a GPU makes of this: benchmarks/gpu.sh DATA [OUT], in under 25 minutes. DATA holds tinyshakespeare/ and mnist/.
# Leaves OUT/results.md, a section for docs/results.md, and each piece's log. Without a GPU it says so and does nothing.
# Another Python: PYTHON=.venv/bin/python benchmarks/gpu.sh DATA
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo 'benchmarks/gpu.sh: there is no GPU here (torch.cuda.is_available() is false); nothing was measured'
  exit 0
fi
DATA=${1:?usage: benchmarks/gpu.sh DATA [OUT], where DATA holds tinyshakespeare/ and mnist/}
OUT=${2:-runs/gpu-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$OUT"
END=$((SECONDS + 1470)) # all of it, in seconds

piece() { # NAME MOST-SECONDS COMMAND...: one measurement; what fails or takes too long is left out of the results
  local name=$1 most=$2 left=$((END - SECONDS))
  shift 2
  if [ "$left" -lt 30 ]; then echo "$name: no time is left"; return; fi
  echo "$name: at most $((most < left ? most : left)) s"
  timeout --signal=INT --kill-after=10 "$((most < left ? most : left))" "$PYTHON" "$@" >"$OUT/$name.log" 2>&1
  local code=$?
  [ $code -eq 0 ] || echo "$name: exit code $code; the end of $OUT/$name.log: $(tail -n 1 "$OUT/$name.log")"
}

train() { # NAME MOST-SECONDS RECIPE OPTIONS...
  local name=$1 most=$2
  shift 2
  piece "$name" "$most" -m armm.cli train "$@" --trainer.accelerator=gpu --trainer.devices=1 --n_samples=0 \
    --trainer.max_steps=-1 --checkpoints.minutes=60 --run_dir="$OUT/$name"
}

BACKBONE=--model.backbone.init_args
# 350M weights: 24 layers of width 1024, 2,048 byte pairs, windows of 1024; the library's own sources are all it needs
LARGE=(text/stdlib $BACKBONE.width=1024 $BACKBONE.n_layers=24 $BACKBONE.n_heads=16 $BACKBONE.window=null
  $BACKBONE.value_embeddings=false $BACKBONE.residual_scalars=false --model.context=1024 --model.compile=true
  --model.optimization.lr=1e-3 --data.crop=1024 --data.batch_size=16 --data.num_workers=4 --data.eval_batch_size=4
  --trainer.precision=bf16-mixed --trainer.val_check_interval=100000 --trainer.limit_test_batches=1)
train share_350m 210 "${LARGE[@]}" --trainer.max_time=00:00:02:00
train profile_350m 120 "${LARGE[@]}" --trainer.max_time=00:00:01:00 --trainer.limit_train_batches=20 \
  --trainer.max_epochs=1 --trainer.profiler=PyTorchProfiler --trainer.profiler.dirpath="$OUT" \
  --trainer.profiler.filename=profile --trainer.profiler.row_limit=25
train shakespeare_3min 225 text/shakespeare_char --data.path="$DATA/tinyshakespeare" $BACKBONE.width=384 \
  $BACKBONE.n_layers=6 $BACKBONE.n_heads=6 $BACKBONE.dropout=0.2 --data.batch_size=64 --data.num_workers=4 \
  --trainer.max_time=00:00:03:00 --trainer.val_check_interval=500
train mnist_dynamic_10min 640 image/mnist_binary --data.path="$DATA/mnist" $BACKBONE.width=256 $BACKBONE.n_layers=6 \
  --data.batch_size=128 --data.num_workers=4 --trainer.max_time=00:00:10:00 --trainer.val_check_interval=1000
train mnist_8bit_3min 210 image/mnist --data.path="$DATA/mnist" $BACKBONE.width=256 $BACKBONE.n_layers=6 \
  --data.batch_size=128 --data.num_workers=4 --trainer.max_time=00:00:03:00 --trainer.val_check_interval=1000
piece training 90 benchmarks/training.py --device cuda --only train_4x128 train_6x384 --seconds 30 \
  --data "$DATA/tinyshakespeare/input.txt"
piece generation 150 benchmarks/generation.py --device cuda --only text_b1_fp32 text_b8 images_28 --seconds 30

"$PYTHON" benchmarks/gpu_report.py "$OUT" | tee "$OUT/results.md"
echo "written: $OUT/results.md; add it to docs/results.md"
