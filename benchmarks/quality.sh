#!/usr/bin/env bash
# Train, evaluate and label real catalogs; the figures of the README's quality table.
#   benchmarks/quality.sh DATA [fashion10k|instacart|mwpd2020|mwpd2020-lvl3|scale_mix ...]
# DATA holds the catalogs (default ../shared/data). About an hour on two cores; one set at a time, nothing beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-../shared/data}
shift || true
python=.venv/bin/python
out=build/quality
mkdir -p "$out"

random_split() { # catalog, epochs: a fifth of the texts is never seen in training
  $python jobs/train.py --catalog "$data/$1.parquet" --text-columns title --max-tokens 32 --epochs "$2" --patience 3 \
    --test-fraction 0.2 --storage "$out/checkpoints" --model-name "$1"
  $python jobs/evaluate.py --catalog "$data/$1.parquet" --model "models:/$1@challenger" --split test
  $python jobs/label.py --catalog "$data/$1.parquet" --model "models:/$1@challenger" --output "$out/labels-$1"
}

official_split() { # model name, label column, epochs: trained on train, validated on validation, scored on test
  $python jobs/train.py --catalog "$data/mwpd2020/train.parquet" --eval-catalog "$data/mwpd2020/validation.parquet" \
    --text-columns title shop_category description --label-column "$2" --epochs "$3" --storage "$out/checkpoints" --model-name "$1"
  $python jobs/evaluate.py --catalog "$data/mwpd2020/test.parquet" --label-column "$2" --model "models:/$1@challenger"
  $python jobs/label.py --catalog "$data/mwpd2020/test.parquet" --model "models:/$1@challenger" --output "$out/labels-$1"
}

for set in "${@:-fashion10k instacart mwpd2020 mwpd2020-lvl3 scale_mix}"; do
  for one in $set; do
    case $one in
      fashion10k) random_split fashion10k 10 ;;
      instacart) random_split instacart 5 ;;
      mwpd2020) official_split mwpd2020 category_path 5 ;;
      mwpd2020-lvl3) official_split mwpd2020-lvl3 lvl3 2 ;;
      scale_mix) # throughput and counting only, with the model of instacart
        $python jobs/label.py --catalog "$data/scale_mix" --model models:/instacart@challenger --output "$out/labels-scale_mix" ;;
    esac
  done
done
