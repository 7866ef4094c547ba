"""``python -m hf_sharp``: the list of methods, and their cards."""

from __future__ import annotations

import re

import pytest

from hf_sharp.__main__ import KINDS, WIDTH, explained, listing, main
from hf_sharp.comparison.passes import passes_per_step
from hf_sharp.methods import METHODS
from hf_sharp.methods.schedules import SCHEDULES

NAMES = ", ".join(sorted([*METHODS, *SCHEDULES]))


def entry(name: str) -> str:
    """What the list says about a method or a schedule."""
    (found,) = [part for part in listing().split("\n\n") if part.startswith(f"{name}\n")]
    return found


def test_the_list_has_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert capsys.readouterr().out == listing() + "\n"
    for name, kind in KINDS.items():
        assert f"    {kind.__name__}(" in entry(name)
    heads = [line.split(":")[0] for line in listing().splitlines() if line and not line.startswith(" ")]
    schedules = ["constant", "linear", "cosine", "warmup", "inverse_sqrt", "follow_lr"]
    assert heads == [
        "Methods",
        *["accelerated_gam", "asam", "crsam", "gam", "gsam", "lpf", "rgsam", "rsam", "sam"],
        *["Around a method", "decayed", "during", "every"],
        *["Schedules for radii and gamma", *schedules],
        "One of them in full",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "asam",
            "asam\n"
            "    ASAM(rho=0.5, eta=0.01, p=2.0, scale='element', scale_biases=False)\n"
            "    Adaptive SAM: the region is scaled by the weights, so that rescaling them\n"
            "    does not change it.\n"
            "    Cost: 2 passes; memory for e and the old weights.",
        ),
        (
            "lpf",
            "lpf\n"
            "    LPF(gamma, draws=8)\n"
            "    Low-pass filtered gradient: the mean gradient over Gaussian draws around the\n"
            "    weights.\n"
            "    Cost: draws passes; memory for one gradient, one draw and the old weights.",
        ),
        (
            "linear",
            "linear\n    Linear(start, stop)\n    From start at the first step in a straight line to stop at the last.",
        ),
    ],
)
def test_an_entry(name: str, said: str) -> None:
    assert entry(name) == said


@pytest.mark.parametrize("name", ["accelerated_gam", "asam", "crsam", "gam", "gsam", "rsam", "sam"])
def test_the_cost_is_what_is_counted(name: str) -> None:
    said = re.search(r"Cost: (\d+) passes", entry(name))
    assert said is not None
    assert int(said[1]) == passes_per_step(METHODS[name]())


def test_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "SAM"])
    assert capsys.readouterr().out == (
        "sam: SAM(rho=0.05, p=2.0)\n"
        "\n"
        "Sharpness-aware minimization: the gradient at the worst nearby point.\n"
        "\n"
        "d = g(w + e) with e = rho sign(g) |g|^(q-1) / |g|_q^(q-1), 1/p + 1/q = 1; for p\n"
        "= 2 e = rho g / |g|.\n"
        "\n"
        "Cost: 2 passes; memory for one gradient and the old weights.\n"
        "\n"
        "Suggested values: rho 0.05 on CIFAR-10 and for a ResNet-50 on ImageNet, 0.1 on\n"
        "CIFAR-100 and, with Adam, on IWSLT'14 (Kwon et al., 2021, sections 5.2 and 5.3);\n"
        "0.02 to 0.2 where nothing is known. p = 2 does best (section 2 there).\n"
        "\n"
        "Caveats: the radius is that of all parameters together, so the same rho moves\n"
        "each weight of a larger model less, and what rho is best depends on how many\n"
        "samples share a perturbation. Weight decay, as the optimizer does it, stays\n"
        "outside the perturbation (Decayed puts it inside). At p = 1 the whole radius is\n"
        "on the largest entries of the gradient, ties share it.\n"
        "\n"
        "Fields:\n"
        "    rho=0.05: radius of the perturbation in the p-norm, >= 0.\n"
        '    p=2.0: the norm, from 1 to infinity (float("inf"); .inf in YAML).\n'
        "\n"
        "References:\n"
        "    Foret et al., Sharpness-Aware Minimization for Efficiently Improving\n"
        "    Generalization, ICLR 2021. The step for any p: Kwon et al., ICML 2021,\n"
        "    section 2.\n"
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_card_fits_and_has_its_parts(name: str) -> None:
    """Formulas in a block keep their lines; the rest is wrapped."""
    text = explained(name)
    assert text.startswith(f"{name}: {KINDS[name].__name__}(")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "`" not in text
    if name in METHODS:
        parts = ["\n\nCost: ", "\n\nSuggested values", "\n\nCaveats: ", "\n\nFields:\n", "\n\nReferences:\n"]
        assert [text.count(part) for part in parts] == [1] * 5
        assert sorted(map(text.index, parts)) == [text.index(part) for part in parts]


def test_a_block_of_formulas_keeps_its_lines() -> None:
    assert (
        "\n\nWith u(x) = x / |x|::\n\n    g0 = g(w)             g1 = g(w + step u(g0))\n    w2 = w + rho u(g1 - g0)\n"
    ) in explained("accelerated-gam")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["explain", "gasm"], f"Unknown method or schedule 'gasm'. Did you mean 'gsam'? Choose from {NAMES}."),
        (["explain", "lineer"], f"Unknown method or schedule 'lineer'. Did you mean 'linear'? Choose from {NAMES}."),
        (["explain", "zzz"], f"Unknown method or schedule 'zzz'. Choose from {NAMES}."),
        (["explain"], "the following arguments are required: name"),
        (["explian", "sam"], "invalid choice: 'explian'"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert said in capsys.readouterr().err
