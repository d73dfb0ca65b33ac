"""What `experiments.bench` compares with: transformers, peft and TRL on torch, used as their documentation says."""

from collections.abc import Callable, Sequence

import numpy as np
import peft
import torch
import transformers
from datasets import Dataset
from trl.data_utils import pack_dataset

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100  # the label that costs nothing


def orders(length: Sequence[int], batch_rows: int) -> dict[str, list[np.ndarray]]:
    """Row numbers of each batch, in order of arrival and sorted by length."""
    ways = {"arrival": np.arange(len(length)), "sorted": np.argsort(length, kind="stable")}
    return {name: [order[i : i + batch_rows] for i in range(0, len(order), batch_rows)] for name, order in ways.items()}


def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """i64[rows, longest], filled up on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


def hidden(folder: str, token: Sequence[list[int]], *, rows: int, dtype: str) -> dict[str, Callable[[], np.ndarray]]:
    """The last layer's state at each row's last token, f32[R, D], without the output map."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).to(DEVICE).eval()

    def contestant(batches):
        def run():
            out = np.empty((len(token), model.config.hidden_size), np.float32)
            with torch.inference_mode():
                for batch in batches:
                    ids = padded([token[r] for r in batch], 0).to(DEVICE)
                    length = torch.tensor([len(token[r]) for r in batch])
                    mask = (torch.arange(ids.shape[1]) < length[:, None]).to(DEVICE)
                    state = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                    out[batch] = state[torch.arange(len(batch)), length - 1].float().cpu().numpy()
            return out

        return run

    ways = orders([len(row) for row in token], rows)
    return {f"transformers, {name}": contestant(batches) for name, batches in ways.items()}


def sft(
    folder: str,
    rows: Sequence[tuple[list[int], list[int]]],
    *,
    batch_rows: int,
    row_length: int,
    rank: int,
    alpha: float,
    lr: float,
    dtype: str,
) -> dict[str, Callable[[], float]]:
    """One pass of AdamW over the rows; returns the mean loss of the answers' tokens."""
    token = [prompt + answer for prompt, answer in rows]
    label = [[IGNORED] * len(prompt) + answer for prompt, answer in rows]

    def collated(batch):
        ids = padded([token[r] for r in batch], 0)
        length = torch.tensor([len(token[r]) for r in batch])
        mask = torch.arange(ids.shape[1]) < length[:, None]
        return dict(input_ids=ids, attention_mask=mask, labels=padded([label[r] for r in batch], IGNORED))

    ways = {
        f"transformers + peft, {name}": [collated(batch) for batch in batches]
        for name, batches in orders([len(row) for row in token], batch_rows).items()
    }
    data = Dataset.from_dict({"input_ids": token, "labels": label})
    packed = pack_dataset(data, seq_length=row_length, strategy="bfd")
    ways["transformers + peft, packed by TRL"] = [unpadded(row) for row in packed]

    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(DEVICE)
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, settings).train()
    start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}

    def contestant(batches):
        def run():
            trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
            with torch.no_grad():
                for name, value in trained.items():
                    value.copy_(start[name])
            optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.0)
            losses, tokens = [], 0
            for batch in batches:
                loss = model(**{name: value.to(DEVICE) for name, value in batch.items()}, use_cache=False).loss
                count = int((batch["labels"] != IGNORED).sum())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach() * count)
                tokens += count
            return float(torch.stack(losses).sum()) / tokens

        return run

    return {name: contestant(batches) for name, batches in ways.items()}


def writer(folder: str) -> Callable[[Sequence[list[int]], int, float], list[list[int]]]:
    """(prompts, tokens to write to each, temperature) -> tokens; no row ends before."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval()
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no stop token

    def write(prompts, num_tokens, temperature):
        length = torch.tensor([len(prompt) for prompt in prompts])
        ids = padded([prompt[::-1] for prompt in prompts], 0).flip(1).to(DEVICE)
        mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - length[:, None]).long().to(DEVICE)
        drawing = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else dict(do_sample=False)
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=num_tokens, **drawing)
        return out[:, ids.shape[1] :].tolist()

    return write


def unpadded(row: dict) -> dict[str, torch.Tensor]:
    """A packed row as one sequence; positions that begin anew keep its texts apart."""
    position = np.concatenate([np.arange(length) for length in row["seq_lengths"]])
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
    labels[0, torch.tensor(position) == 0] = IGNORED
    return dict(input_ids=ids, labels=labels, position_ids=torch.tensor(position)[None])
