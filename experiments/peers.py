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


def trust_heads(
    settings: Sequence[dict], x: np.ndarray, correct: np.ndarray, x_val: np.ndarray, correct_val: np.ndarray, *, auc: Callable
) -> Callable[[], np.ndarray]:
    """Trains a residual MLP for each of the settings, one after another; returns the best held-back AUC of each."""
    x, x_val = ((part - x.mean(0)) / x.std(0) for part in (x, x_val))
    x, x_val, right = (torch.tensor(np.float32(part), device=DEVICE) for part in (x, x_val, correct))

    def fit(one: dict) -> float:
        torch.manual_seed(one["seed"])
        head = TrustHead(x.shape[1], **{name: one[name] for name in ("width", "blocks", "expansion", "dropout", "drop_path")})
        head.to(DEVICE)
        optimizer = torch.optim.AdamW(head.parameters(), lr=one["lr"], weight_decay=one["weight_decay"])
        steps = max(len(x) // one["batch_rows"], 1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * one["epochs"])
        balance = ((len(right) - right.sum()) / right.sum()) ** one["class_weight"]
        best = 0.0
        for _ in range(one["epochs"]):
            head.train()
            order = torch.randperm(len(x), device=DEVICE)
            for rows in order[: steps * one["batch_rows"]].split(one["batch_rows"]):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(head(x[rows]), right[rows], pos_weight=balance)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            head.eval()
            with torch.inference_mode():
                best = max(best, auc(head(x_val).cpu().numpy(), correct_val))
        return best

    return lambda: np.array([fit(one) for one in settings])


class TrustHead(torch.nn.Module):
    """The residual MLP of `w2s_jax/trust/heads.py`."""

    def __init__(self, features: int, *, width: int, blocks: int, expansion: int, dropout: float, drop_path: float):
        super().__init__()
        linear, norm = torch.nn.Linear, torch.nn.RMSNorm
        inside = expansion * width
        self.input, self.norm, self.output = linear(features, width), norm(width, eps=1e-6), linear(width, 1)
        self.norms = torch.nn.ModuleList(norm(width, eps=1e-6) for _ in range(blocks))
        self.gates, self.ups = (torch.nn.ModuleList(linear(width, inside, bias=False) for _ in range(blocks)) for _ in range(2))
        self.downs = torch.nn.ModuleList(linear(inside, width, bias=False) for _ in range(blocks))
        self.dropout = torch.nn.Dropout(dropout)
        self.rates = [drop_path * b / max(blocks - 1, 1) for b in range(blocks)]

    def forward(self, x):
        h = self.input(x)
        for norm, gate, up, down, rate in zip(self.norms, self.gates, self.ups, self.downs, self.rates, strict=True):
            inner = norm(h)
            inner = self.dropout(down(torch.nn.functional.silu(gate(inner)) * up(inner)))
            if self.training and rate:
                inner = inner * (torch.rand(len(inner), 1, device=inner.device) >= rate) / (1 - rate)
            h = h + inner
        return self.output(self.norm(h))[:, 0]


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
