#!/usr/bin/env bash
# The runs of docs/study.md, into outputs/study. If it is stopped, run it again to continue.
set -euo pipefail
cd "$(dirname "$0")/../../.."
here=recipes/shapes/study
export PYTHON="${PYTHON:-python}" OMP_NUM_THREADS=1  # the same digits on any number of cores
mkdir -p outputs/study
# Settings are chosen on every other prompt, and reported on the rest.
awk 'NR % 2 == 1' recipes/shapes/prompts.jsonl > outputs/study/tuning.jsonl
awk 'NR % 2 == 0' recipes/shapes/prompts.jsonl > outputs/study/held_out.jsonl
"$PYTHON" -m recipes.shapes.pictures outputs/study/pictures
# Lenses other than the one that comes along, and what they are trained on; two things at once.
"$PYTHON" -m recipes.shapes.training_set outputs/study/training 3000
head -n 4000 outputs/study/training/questions.jsonl > outputs/study/training/some.jsonl
"$PYTHON" main.py predict --config configs/demo.yaml --data.prompt_json outputs/study/training/captions.jsonl \
    --model.dola false --model.cfg_weight 1 --model.parallel_size 1 --model.seed 77 \
    --writer.save_tokens true --writer.gallery false --writer.output_dir outputs/study/own &
"$PYTHON" main.py answer --config configs/demo-answer.yaml --model.dola false \
    --data.question_json outputs/study/training/some.jsonl \
    --writer.page false --writer.output_dir outputs/study/own_answers
wait $!
train() {
    local file=outputs/study/lenses/$1.safetensors
    shift
    [ -f "$file" ] || "$PYTHON" main.py lens --config recipes/shapes/lens.yaml --output "$file" "$@"
}
{
    train pictures --model.layers "[3]" --data.runs "[]" \
        --data.picture_json outputs/study/training/captions.jsonl
    train blank --model.layers "[3]" --data.runs "[outputs/study/own]" --model.unconditional 1
    train text --model.head text --model.layers "[3, 5, 8]" --data.runs "[outputs/study/own_answers]" \
        --data.batch_size 16 --trainer.max_steps 200 --trainer.val_check_interval 100
} &
train prompted --model.layers "[3]" --data.runs "[outputs/study/own]" --model.unconditional 0
train longer --model.layers "[3]" --data.runs "[outputs/study/own]" --trainer.max_steps 900
wait $!
# Answers and rankings, with nothing to choose.
printf '%s\n' answers lens_answers ranks likelihood yes_no |
    xargs -P 2 -I{} "$PYTHON" main.py evaluate --config $here/{}.yaml
# Two evaluations at once.
printf '%s\n' strength baseline top_p top_k min_p entropy_temperature policies plain layers temperature \
    readout guide one_row two_rows tries |
    xargs -P 2 -I{} "$PYTHON" main.py evaluate --config $here/common.yaml --config $here/{}.yaml
"$PYTHON" -m recipes.shapes.study.experiments outputs/study
"$PYTHON" -m recipes.shapes.study.entropy outputs/study outputs/study/own
# What was chosen, on the other half of the prompts; a lens also with twice as many images.
for part in headline lens equal_cost; do
    "$PYTHON" -m recipes.shapes.study.choose outputs/study $part > outputs/study/$part.yaml
done
"$PYTHON" main.py evaluate --config $here/common.yaml --config $here/held_out.yaml \
    --config outputs/study/equal_cost.yaml --model.parallel_size 8 \
    --writer.output_dir outputs/study/equal_cost &
for part in headline lens; do
    "$PYTHON" main.py evaluate --config $here/common.yaml --config $here/held_out.yaml \
        --config outputs/study/$part.yaml --writer.output_dir outputs/study/$part
done
wait $!
for name in head_set lens; do
    "$PYTHON" main.py rank --model.scorer siglip --model.model_path checkpoints/shapes-siglip \
        --model.dola false --trainer.accelerator cpu --data.run outputs/study/equal_cost/$name \
        --writer.output_dir outputs/study/equal_cost/ranks/$name
done
"$PYTHON" -m recipes.shapes.study.tables outputs/study > outputs/study/tables.md
"$PYTHON" -m recipes.shapes.study.figure outputs/study
echo "Look at outputs/study/tables.md and study.svg"
