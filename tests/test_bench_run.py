"One run: ways to train, what is measured, every task."
import pytest
import json
from common import *

from common_bench import *

RUN = dict(data='digits', data_args=dict(n_train=100, n_valid=100), net='small_cnn', net_args={}, method='cw-VR', args=dict(weight=1.), seed=0, epochs=2, lr=1e-2)

def test_every_callback_has_a_name_in_the_runner():
    made = {getattr(f, 'func', f).__name__ for m,f in methods.items() if f and m not in of_fastai}
    import latentreg_fastai.all as everything
    there = {n for n,o in vars(everything).items() if isinstance(o, type) and issubclass(o, LayerCallback) and o.__module__.startswith('latentreg_fastai.callback')}
    assert made == there - set(ONLY_WATCH)

def test_whole_numbers_of_a_suite_suit_fastais_mixup():
    "YAML reads 1 as a whole number, of which torch makes no Beta distribution"
    one,same = (one_run({**RUN, 'method': 'MixUp', 'args': dict(alpha=a)}) for a in (1,1.))
    assert one['nll'] == same['nll']

def test_a_loss_is_a_method_and_nll_is_the_nll():
    "Label smoothing changes the training loss, not the measure; a constant rate is another run"
    runs = [{**RUN, 'method': m, 'args': {}, 'epochs': 1, 'lr': 0.} for m in ('baseline','LabelSmoothing')]
    plain,smooth = map(one_run, runs)
    close(plain['nll'], smooth['nll'], eps=1e-6)          # nothing was learnt: the same network
    assert plain['curve'][0]['train_loss'] != smooth['curve'][0]['train_loss']
    flat = [{**RUN, 'fit': f} for f in ('flat','one_cycle')]
    assert runner._key(flat[0]) != runner._key(flat[1]) and one_run(flat[0])['nll'] != one_run(flat[1])['nll']

def test_ways_to_train(monkeypatch):
    "Each changes the run; bfloat16 is seen by the network, on a CPU too, where fp16 is refused by name"
    seen,forward = set(),nn.Linear.forward
    monkeypatch.setattr(nn.Linear, 'forward', lambda self, x: seen.add((y := forward(self, x)).dtype) or y)
    figures = {}
    for name,change in dict(plain={}, sgd=dict(opt='sgd'), rmsprop=dict(opt='rmsprop', lr=1e-3), wd=dict(wd=.5), drops=dict(fit='drops', drops=[.5]), drop=dict(drop=.5), bf16=dict(precision='bf16', channels_last=True)).items():
        seen.clear()
        figures[name] = one_run({**RUN, **change})['nll']
        assert (torch.bfloat16 in seen) == (name == 'bf16')
    assert len(set(figures.values())) == len(figures) and all(map(math.isfinite, figures.values()))
    if default_device().type == 'cpu':
        with pytest.raises(ValueError, match="'fp16' needs a GPU.*bf16"): one_run({**RUN, 'precision': 'fp16'})

def test_the_rate_drops():
    "To a tenth at each share of training, as the papers' schedules do"
    lrs,run = [],{**RUN, 'fit': 'drops', 'drops': [.5,.75], 'lr': .1, 'opt': 'sgd', 'epochs': 4}
    learn = trained(run, Probe(after_batch=lambda l: l.training and lrs.append(l.opt.hypers[-1]['lr'])))
    n = len(lrs)
    close(lrs, [.1]*(n//2) + [.01]*(n//4) + [.001]*(n - n//2 - n//4), eps=1e-9)

def test_medians_are_of_the_last_epochs():
    "However few epochs were measured, no earlier one enters"
    few,some = (one_run({**RUN, 'epochs': 6, 'points': 2, 'last': n}) for n in (1,3))
    assert [c['epoch'] for c in few['curve']] == [0,3,5] and few['error_last5'] == few['error'] and few['nll_last5'] == few['nll']
    assert [c['epoch'] for c in some['curve']] == [0,3,4,5] and some['nll_last5'] == np.median([c['nll'] for c in some['curve'][1:]])

@pytest.mark.parametrize('name', RUNS)
def test_runs_of_every_task(name, tmp_path):
    "Twice the same figures, whatever the process did before; the baseline's are others; records are JSON and tables can be made of them"
    run = {**SMALL, **RUNS[name]}
    a,b,base = one_run(run),one_run(run),one_run({**run, 'method': 'baseline', 'args': {}})
    figures = [k for k in ('error','nll','ece','brier','judge_error','corruptions','samples') if k in a]
    assert {k: a[k] for k in figures} == {k: b[k] for k in figures} and a['error'] >= 0 and json.loads(json.dumps(a)) == a
    assert a.get('figure') == {'reconstruction': 'MSE × 100', 'gan': 'Fréchet distance'}.get(name)
    assert a['curve'][-1]['train_loss'] != base['curve'][-1]['train_loss']
    t = summary([base, a])
    shown = show_table(t)
    assert (a.get('figure') or 'error %') in shown and ('NLL' in shown) == ('nll' in a) == ('better NLL' in shown) and t.gain[run['method']] == base['error'] - a['error']
    for axs in (plot_table([base, a]), plot_gains({'all': t})): assert any((a.get('figure') or 'error') in s for ax in axs for s in (ax.get_xlabel(), ax.get_ylabel())); plt.close('all')
    assert len(winners(t).splitlines()) == 2 + ('nll' in a) and plot_curves([base, a], col='error').get_ylabel() == (a.get('figure') or 'error %')
    plt.close('all')

def test_semi_supervised_run_has_its_labels():
    "Baseline and method have the same hundred labels, batches and start"
    learn = trained({**SMALL, **RUNS['semi-supervised'], 'epochs': 1})
    base = trained({**SMALL, **RUNS['semi-supervised'], 'epochs': 1, 'method': 'baseline', 'args': {}})
    assert len(learn.dls.train_ds) == 20 and torch.equal(learn.dls.train_ds.tensors[0], base.dls.train_ds.tensors[0]) and len(learn.dls.valid_ds) == 100
    said = lambda run: runner._quiet_run({**SMALL, **run})['failed']
    assert 'give `labeled`' in said({**RUNS['semi-supervised'], 'labeled': None}) and 'LabelSmoothing is for other tasks' in said({**RUNS['gan'], 'method': 'LabelSmoothing', 'args': {}})

def test_rows_share_the_autoencoder(monkeypatch):
    "Of the same data and seed; another seed has another"
    made,fit = [],runner.fit_vae
    monkeypatch.setattr(runner, 'fit_vae', lambda *a, **kw: made.append(kw['seed']) or fit(*a, **kw))
    runner._vaes.clear()
    run = {**SMALL, **RUNS['VarMixup'], 'measures': None, 'epochs': 1}
    run.pop('measures')
    for r in (run, {**run, 'args': dict(p=.5)}, {**run, 'seed': 1}): one_run(r)
    assert made == [0,1]

# What is in a record

def test_measures_in_a_record():
    "Speed and memory are positive and fit together; ECE and Brier score are those of the network's predictions"
    rec,learn = one_run(RUN),trained(RUN)
    probs,y = learn.get_preds()
    close(rec['brier'], float((probs - F.one_hot(y, 10)).square().sum(1).mean()), eps=1e-5)
    confidence,top = probs.max(1)
    close(rec['error'], 100*float((top != y).float().mean()), eps=1e-4)
    assert abs(float(confidence.mean() - (top == y).float().mean())) - 1e-6 <= rec['ece'] <= 1   # the mean gap is never above the mean of the gaps
    close(rec['images_s'], 64/rec['step_ms']*1e3, eps=1e-6)
    assert rec['step_ms'] > 0 and rec['memory_mb'] > 0 and 0 < rec['seconds'] < 60 and json.loads(json.dumps(rec)) == rec

@linux
def test_memory_is_the_runs_own(tmp_path):
    "A wide layer takes its weights, gradients and two averages: 16 bytes each; a small run after it takes what one before took"
    runs = [{**RUN, 'epochs': 2, 'seed': s, 'net_args': dict(width=w)} for s,w in ((0,64),(1,64),(2,50_000),(3,64))]
    _,before,wide,after = (r['memory_mb'] for r in run_all(runs, tmp_path/'r.jsonl'))
    weights = 16*50_000*(128+10)/2**20
    assert .8*weights < wide < 4*weights and max(before, after) < wide/4
