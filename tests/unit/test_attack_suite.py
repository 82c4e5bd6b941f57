"""The oracle's streams, views, the decision rule, and the suite's choice of examples."""

import numpy as np
import pytest
import torch

import drbench
from drbench.api import Draws
from drbench.attacks import evaluate, presets, views
from drbench.attacks.evaluate import Decision
from drbench.attacks.losses import Loss
from drbench.attacks.names import VIEWS
from drbench.attacks.oracle import Keys, mean_logits, oracle
from drbench.attacks.parallel import in_parts
from drbench.attacks.presets import member
from drbench.attacks.suite import Suite, check
from drbench.attacks.threat import Threat
from drbench.errors import DrbenchError
from drbench.evidence import ABSTAIN
from tests.attacked import Linear, two_classes

CASES = {
    "undefended": (["digits/classifier"], {}, 0.0),
    "noise_augmented": (["digits/noise_augmented"], {}, 0.25),
    "denoised": (["digits/classifier", "digits/denoiser"], {"sampler": "densepure", "steps": 2, "votes": 1}, 0.25),
}


def loaded(name, count=8):
    checkpoint, args, sigma = CASES[name]
    images = drbench.load_data("digits", split="validation", subset=f"first{count}")
    return drbench.load_defense(name, images, checkpoint, **args), images, sigma


# ---- oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noise_augmented", "denoised"])
def test_streams_are_of_image_step_and_draw(name):
    defense, images, sigma = loaded(name, 4)
    view, loss = views.Direct(defense, sigma), Loss("margin")
    keys = Keys(0, images.ids, "test")
    whole = oracle(view, images.x, images.y, loss, keys, 3, draws=6)
    order = [3, 0, 2]
    part = oracle(view, images.x[order], images.y[order], loss, keys._replace(ids=tuple(images.ids[i] for i in order)),
                  3, draws=6, rows=7)  # fmt: skip
    assert torch.equal(part.gradient, whole.gradient[order]) and torch.equal(part.loss, whole.loss[order])
    assert torch.equal(part.failures, whole.failures[order])
    for other in (keys._replace(stage="other"), keys._replace(seed=1)):
        assert not torch.equal(oracle(view, images.x, images.y, loss, other, 3, draws=6).loss, whole.loss)
    assert not torch.equal(oracle(view, images.x, images.y, loss, keys, 4, draws=6).loss, whole.loss)
    # the mean over six draws is that over draws of which the first three are those of a call with three
    few = [view.rows(images.x[:1].expand(m, -1, -1, -1), keys.spans(3, m)[:1]) for m in (3, 6)]
    torch.testing.assert_close(few[1][:3], few[0], atol=1e-6, rtol=1e-6)


def test_gradient_is_that_of_the_mean_loss():
    defense, x, y, _, w = two_classes(3)
    answer = oracle(views.Direct(defense, 0.25), x, y, Loss("margin"), Keys(0, (0, 1, 2), "t"), draws=5)
    torch.testing.assert_close(answer.gradient.flatten(1), w * (1 - 2 * y[:, None].float()), atol=1e-6, rtol=1e-5)


def test_a_surrogate_gradient_is_used_by_the_attacker_alone():
    class Surrogate(Linear):
        def attack_logits(self, z, sigma, draws):
            return self.logits(z, sigma, draws).detach() + 0 * z.sum() + z.flatten(1) @ (3 * self.weight.T)

    defense, x, y, *_ = two_classes(3)
    defense.__class__ = Surrogate
    slopes = {
        name: oracle(VIEWS[name](defense, 0.0), x, y, Loss("margin"), Keys(0, (0, 1, 2), "t")).gradient
        for name in ("exact", "logits")
    }
    torch.testing.assert_close(slopes["exact"], 3 * slopes["logits"], atol=1e-5, rtol=1e-5)


def test_transfer_uses_the_gradient_of_another_defense():
    """The other boundary lies elsewhere: its gradient at its own noise level, and nothing of it in the verdict."""
    defense, x, y, _, w = two_classes(4)
    other = Linear(torch.stack([0 * w, w.roll(1)]), torch.zeros(2), (1, 4, 4), sigmas=(0.0,))
    suite = Suite(defense, Threat("linf", 0.1), [member("pgd", view="from other", steps=3)], sources={"other": other})
    view = suite.view("from other")
    assert not view.faithful and view.sigma == 0
    slope = oracle(view, x, y, Loss("margin"), Keys(0, (0, 1, 2, 3), "t")).gradient
    torch.testing.assert_close(slope.flatten(1), w.roll(1) * (1 - 2 * y[:, None].float()), atol=1e-6, rtol=1e-5)
    found = suite.run(x, y, range(4))
    for each, label in zip(found, y, strict=True):
        answer = defense.logits(each.example[None], 0.0, None).argmax()
        assert each.evidence.adversarial.wrong(int(label)) == int(answer != label)
    with pytest.raises(DrbenchError, match="did you mean 'from other'"):
        check(member("pgd", view="from others"), "linf", ["other"])


def test_identity_takes_the_gradient_at_the_purified_image():
    class Purified(Linear):
        def purify(self, z, sigma, draws):
            return (z > 0.5).float()  # no gradient

        def logits(self, z, sigma, draws):
            return super().logits(z if sigma == 0 else self.purify(z, sigma, draws), 0.0, draws) ** 3

    defense, x, y, *_ = two_classes(3)
    defense.__class__ = Purified
    view, keys = views.Identity(defense, 0.25), Keys(0, (0, 1, 2), "t")
    ours = oracle(view, x, y, Loss("margin"), keys)
    z = views.noisy(x, 0.25, keys.spans(0, 1))
    at = (z > 0.5).float().requires_grad_(True)
    value = Loss("margin")(defense.logits(at, 0.0, None)[:, None], y)
    torch.testing.assert_close(ours.loss, value.detach())
    torch.testing.assert_close(ours.gradient, torch.autograd.grad(value.sum(), at)[0])
    with pytest.raises(DrbenchError, match="purify"):
        views.Identity(two_classes(1)[0], 0.25)


# ---- evaluation ---------------------------------------------------------------------------------------------------


def test_decision_rules():
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.1, 0.0]], [[5.0, 0, 0], [0, 0, 5.0], [0, 0, 0]]])
    assert Decision("majority", 3)(logits).tolist() == [1, 0]  # 0 wins the second by two votes
    assert Decision("mean_prob", 3)(logits).tolist() == [0, 0]
    assert Decision()(logits[:, :1]).tolist() == [0, 0]
    for bad in (("single", 3), ("majority", 0), ("vote", 1)):
        with pytest.raises(DrbenchError):
            Decision(*bad)


def test_evaluations_do_not_depend_on_batches_images_or_their_number():
    defense, images, sigma = loaded("noise_augmented")
    view, keys, rule = views.Direct(defense, sigma), Keys(0, images.ids, "evaluate"), Decision("majority", 5)
    x = 0.4 * images.x  # hard to read
    whole = evaluate.evaluate(view, rule, x, keys, 9)
    part = evaluate.evaluate(view, rule, x[2:5], keys._replace(ids=images.ids[2:5]), 4, rows=13)
    assert torch.equal(part, whole[2:5, :4])
    assert (whole != whole[:, :1]).any()  # random indeed


def test_logits_that_are_not_finite_are_no_answer():
    defense, x, *_ = two_classes(4)
    defense.bias.data[0] = torch.nan
    answers = evaluate.evaluate(views.Direct(defense), Decision(), x, Keys(0, tuple(range(4)), "e"), 1)
    assert (answers == ABSTAIN).all()


def test_ranks_are_of_the_clean_logits():
    defense, images, _ = loaded("undefended")
    logits = mean_logits(views.Direct(defense), images.x, Keys(0, images.ids, "r"))
    torch.testing.assert_close(logits, defense.logits(images.x, 0.0, Draws.seeded(0, 8)), atol=1e-5, rtol=1e-5)


# ---- suite --------------------------------------------------------------------------------------------------------


def outcome(suite, images, chosen):
    return suite.run(images.x[chosen], images.y[chosen], [images.ids[i] for i in chosen])


@pytest.mark.parametrize("name", list(CASES))
def test_outcomes_do_not_depend_on_batch_size_or_batch_mates(name):
    count = 4 if name == "denoised" else 8
    defense, images, sigma = loaded(name, count)
    members = [member("noise", tries=2), member("apgd", loss="ce", steps=6)]
    members += [member("apgd_t", targets=2, steps=6), member("fab_t", targets=2, steps=4), member("square", queries=12)]
    if sigma:
        members = [*members[:2], member("pgd", steps=3, draws=2), member("square", queries=3, draws=2)][-count // 2 :]
    suite = Suite(defense, Threat("linf", 0.08), members, sigma, evaluations=20, select=10)
    whole = outcome(suite, images, range(count))
    assert any(each.evidence.kept for each in whole)
    for chosen, rows in (([2], 256), ([3, 1], 5), (range(count), 64)):
        other = Suite(defense, Threat("linf", 0.08), members, sigma, evaluations=20, select=10, rows=rows)
        for place, found in zip(chosen, outcome(other, images, chosen), strict=True):
            assert found.evidence == whole[place].evidence and torch.equal(found.example, whole[place].example)
    parts = {i: each for part, found in in_parts(suite, images.x, images.y, images.ids, [3, 0, 2], largest=2)
             for i, each in zip(part, found, strict=True)}  # fmt: skip
    assert list(parts) == [3, 0, 2]
    assert all(parts[i].evidence == whole[i].evidence for i in parts)


def test_results_of_an_attack_do_not_depend_on_the_other_attacks():
    defense, images, sigma = loaded("noise_augmented")
    alone, both = (
        outcome(Suite(defense, Threat("l2", 0.3), members, sigma, evaluations=5, select=5), images, range(8))
        for members in ([member("pgd", steps=3)], [member("noise"), member("pgd", steps=3)])
    )
    for one, two in zip(alone, both, strict=True):
        assert one.evidence.tried[-1] == two.evidence.tried[-1]


def test_broken_images_of_a_deterministic_defense_are_left_alone():
    defense, x, y, margins, w = two_classes(40)
    y[0] = 1 - y[0]  # misclassified when clean
    eps = (margins / w.abs().sum()).median().item()
    suite = Suite(defense, Threat("linf", eps), [member("apgd", steps=20), member("square", queries=5)])
    found = [each.evidence for each in suite.run(x, y, range(40))]
    assert found[0].tried == () and found[0].kept == "" and found[0].distance == 0
    for each in found:
        assert each.clean.count == each.adversarial.count == 1  # one answer says all
        broken = [attack.failures for attack in each.tried]
        assert broken in ([], [1], [0, 0], [0, 1])


def test_the_example_that_fails_most_is_kept():
    """A strong attack after, and before, a weak one: the same example is kept."""
    defense, x, y, *_ = two_classes(30, sigmas=(0.25,))
    strong, weak = member("pgd", loss="margin", steps=10, draws=2), member("noise", tries=1)
    for members in ([strong, weak], [weak, strong]):
        found = Suite(defense, Threat("linf", 0.1), members, 0.25, evaluations=10).run(x, y, range(30))
        assert {each.evidence.kept for each in found} == {strong.label}
        for each in found:
            failures = {attack.attack: attack.failures for attack in each.evidence.tried}
            assert failures[strong.label] == max(failures.values())


def test_nothing_infeasible_leaves_the_suite(monkeypatch):
    from drbench.attacks import suite as module

    defense, x, y, *_ = two_classes(5)
    monkeypatch.setitem(module.ATTACKS, "cheat", lambda problem: problem.x[:, None] + 0.2)
    job = Suite(defense, Threat("linf", 0.1), [member("cheat")])
    found = job.run(x, y, range(5))
    assert all(torch.equal(each.example, clean) for each, clean in zip(found, x, strict=True))
    assert job.notes["outside the threat: clean image instead"] == 5


def test_parts_under_way_are_stopped_with_the_rest(monkeypatch):
    from drbench.attacks import suite as module

    def endless(problem):
        while 1 in problem.keys.ids:
            problem.query(problem.x, Loss("margin"))
        return problem.x[:, None]

    defense, x, y, *_ = two_classes(2)
    monkeypatch.setitem(module.ATTACKS, "endless", endless)
    parts = in_parts(Suite(defense, Threat("linf", 0.1), [member("endless")]), x, y, [0, 1], [0, 1], largest=1)
    assert next(parts)[0] == [0]
    parts.close()  # returns although the second part never ends by itself


def test_clean_accuracy_is_that_of_eps_zero():
    defense, images, sigma = loaded("noise_augmented")
    suite = Suite(defense, Threat("linf", 0.0), [member("pgd", steps=2)], sigma, evaluations=30, select=5)
    for each in outcome(suite, images, range(8)):
        assert each.evidence.clean == each.evidence.adversarial


def test_presets_grow_and_name_their_constants():
    labels = [each.label for each in presets.preset("standard", "linf", True)]
    assert labels == ["apgd ce 1x100", "apgd_t dlr 9x100", "fab_t 9x100", "square 5000"]
    assert [m.label for m in presets.preset("standard", "stadv", True)] == ["stadv 100x1", "square 5000"]
    assert [m.label for m in presets.preset("standard", "stadv", False)] == ["stadv 100x16"]
    l1 = [*presets.preset("thorough", "l1", False), *presets.transfer("fast", "l1", ["other"])]
    assert "pgd" not in {m.attack for m in l1} and {m.view for m in l1} == {"exact", "clean", "from other"}
    assert [m.label for m in presets.preset("autoattack", "l1", True)][:2] == ["apgd ce 5x100", "apgd_t dlr 5x100"]
    for kind in (True, False):
        for norm in ("linf", "l2", "l1"):
            for name in presets.PRESETS[:4]:
                for gradient in (True, False):
                    members = presets.preset(name, norm, kind, gradient=gradient)
                    assert members and all(check(each, norm) and (gradient or not each.aimed) for each in members)
    with pytest.raises(DrbenchError, match="use preset standard"):
        presets.preset("autoattack", "linf", False)
    with pytest.raises(DrbenchError, match="follows gradients"):
        presets.preset("autoattack", "linf", True, gradient=False)


def test_mistakes_are_named():
    for wrong, said in ((member("pdg"), "did you mean 'pgd'"), (member("pgd", view="exct"), "did you mean 'exact'"),
                        (member("pgd", stepz=3), "did you mean 'steps'")):  # fmt: skip
        with pytest.raises(DrbenchError, match=said):
            check(wrong, "linf")
    for right, norm in ((member("square", queries=2), "stadv"), (member("smoothadv", redraw=0, size=2), "l2"),
                        (member("pgd", steps=np.int64(3), size=np.float64(0.5)), "l1")):  # fmt: skip
        assert check(right, norm) == right
    defense, x, y, *_ = two_classes(2)
    with pytest.raises(DrbenchError, match="declares sigmas"):
        Suite(defense, Threat("linf", 0.1), [], sigma=0.3).run(x, y, [0, 1])


def test_a_lucky_draw_settles_no_image():
    """With one selection draw many examples look broken: only those that fail again and again are left alone."""
    defense, images, sigma = loaded("noise_augmented")
    members = [member("pgd", loss="margin", steps=5, draws=2), member("noise", tries=2)]
    suite = Suite(defense, Threat("linf", 0.25), members, sigma, evaluations=40, select=1)
    found = suite.run(images.x, images.y, images.ids)
    attacked = [(each.evidence, label) for each, label in zip(found, images.y.tolist(), strict=True)]
    again = [len(seen.tried) == 2 for seen, _ in attacked if seen.tried and seen.tried[0].failures == 1]
    assert any(again)
    assert all(seen.adversarial.wrong(label) >= 0.8 * 40 for seen, label in attacked if len(seen.tried) < 2)


def test_failures_and_margins_of_the_selection_are_of_single_draws():
    defense, x, y, margins, w = two_classes(20, sigmas=(0.25,))
    failures, mean = evaluate.judge(views.Direct(defense, 0.25), x, y, Keys(0, tuple(range(20)), "select"), 2000)
    expected = torch.special.ndtr(-margins / (0.25 * w.norm()))
    assert np.abs(failures.numpy() / 2000 - expected.numpy()).max() < 5 * (0.25 / 2000) ** 0.5
    assert torch.allclose(mean, -margins, atol=5 * 0.25 * w.norm().item() / 2000**0.5)
