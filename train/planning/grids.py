"""What the tables of docs/ ask of ``python -m train.plan``, as its options."""

from __future__ import annotations

# What one would rent for each: one host or a pod slice. ChatGLM3-6B is ChatGLM2-6B's network.
_HOSTS, _PODS = ("v5e-8", "v6e-8", "v5p-8"), ("v5e-256", "v6e-256", "v5p-128")
TRAINING = (
    *(
        f"--model {model} --topology {slice_} --seq-len {length}"
        for model, length in (
            ("glm-4-9b", 8192), ("chatglm2-6b", 8192), ("chatglm-6b", 2048), ("glm-10b", 1024),
        )
        for slice_ in _HOSTS + _PODS
    ),
    "--model glm-2b --topology v5e-8 --seq-len 1024",
    "--model glm-2b --topology v6e-8 --seq-len 1024",
    "--model glm-large --topology v5e-8 --seq-len 512 --batch-per-chip 8",
    "--model glm-4-9b --topology v5p-128 --seq-len 8192 --remat attention",
    "--model glm-4-9b --topology v5p-128 --seq-len 8192 --remat minimal",
    "--model chatglm2-6b --topology v5p-128 --seq-len 32768",
    "--model glm-4-9b --topology v5p-128 --seq-len 131072 --mesh fsdp=4,context=16",
)  # fmt: skip
INFERENCE = tuple(
    f"--task {task} --model {model} --topology {slice_} --context {context}{more}"
    for task, model, context, more, slices in (
        ("decode", "glm-10b", 1024, "", ("v6e-1", "v5e-8")),
        ("decode", "chatglm-6b", 2048, " --quant int4", ("v5e-1",)),
        ("decode", "chatglm2-6b", 8192, " --quant int4", ("v5e-1", "v6e-1")),
        ("decode", "chatglm2-6b", 8192, " --quant int8", ("v5e-1",)),
        ("decode", "chatglm2-6b", 8192, "", ("v5e-1", "v5e-8", "v6e-1", "v5p-8")),
        ("decode", "glm-4-9b-chat", 8192, "", ("v5e-8", "v6e-1", "v6e-8", "v5p-8")),
        ("decode", "glm-4-9b-chat", 131072, "", ("v5e-8", "v6e-8", "v5p-8")),
        ("prefill", "chatglm2-6b", 8192, "", ("v5e-8", "v6e-8", "v5p-8")),
        ("prefill", "glm-4-9b-chat", 131072, "", ("v6e-8", "v5p-8")),
        ("decode", "glm-4-9b-chat-1m", 1048576, " --mesh data=16,tensor=4", ("v5p-128",)),
        ("prefill", "glm-4-9b-chat-1m", 1048576, " --mesh data=16,tensor=4", ("v5p-128",)),
    )
    for slice_ in slices
)
# With what the releases say they need, where they say it (ChatGLM-6B ptuning/README, ChatGLM3
# finetune_demo/README, GLM-4 finetune/README); lengths and rows are theirs.
FINETUNING = tuple(
    (f"--task finetune --model {model} --topology {slice_} --method {method}", release)
    for model, slice_, method, release in (
        ("chatglm-6b", "v5e-1", "ptuning --quant int4 --seq-len 128", "6.7 GB"),
        ("chatglm3-6b", "v5e-1", "lora --batch-per-chip 4", "14,082 MiB (14.77 GB)"),
        ("chatglm3-6b", "v5e-1", "lora --quant int8 --batch-per-chip 4", ""),
        ("chatglm3-6b", "v5e-1", "lora --quant int4 --batch-per-chip 4", ""),
        ("chatglm3-6b", "v6e-1", "ptuning --batch-per-chip 4", "18,426 MiB (19.32 GB)"),
        ("chatglm3-6b", "v5e-8", "full", "48,346 MiB (50.69 GB) on each of 4 GPUs"),
        ("glm-4-9b", "v6e-1", "lora --seq-len 1024", "22 GB"),
        ("glm-4-9b", "v5e-1", "lora --quant int8 --seq-len 1024", ""),
        ("glm-4-9b", "v5p-8", "full --seq-len 1024", "80 GB on each of 8 GPUs"),
    )
)
