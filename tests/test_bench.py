"The runner, the suites and the command."
import pytest, subprocess, sys
from common import *
from latentreg_fastai.bench import *
from latentreg_fastai.bench import run as runner,suite as suite_module

RUN = dict(data='digits', data_args=dict(n_train=100, n_valid=100), net='small_cnn', net_args={}, method='cw-VR', args=dict(weight=1.), seed=0, epochs=2, lr=1e-2)

def test_every_callback_has_a_name_in_the_runner():
    made = {getattr(f, 'func', f).__name__ for m,f in methods.items() if f and m not in of_fastai}
    import latentreg_fastai.all as everything
    there = {n for n,o in vars(everything).items() if isinstance(o, type) and issubclass(o, LayerCallback) and o.__module__.startswith('latentreg_fastai.callback')}
    assert made == there - set(ONLY_WATCH)

def test_a_broken_line_is_done_again(tmp_path):
    f = tmp_path/'r.jsonl'
    recs = run_all([RUN], f)
    whole = f.read_text()
    f.write_text(whole + whole[:50])                      # cut off in the middle of a write
    assert len(read_records(f)) == 1
    again = run_all([RUN, {**RUN, 'seed': 1}], f)
    assert again[0] == recs[0] and len(read_records(f)) == 2 and f.read_text().startswith(whole)

def test_nothing_is_done_twice(tmp_path, monkeypatch):
    f,calls = tmp_path/'r.jsonl',[]
    one = runner.one_run
    monkeypatch.setattr(runner, 'one_run', lambda r: calls.append(r['seed']) or one(r))
    run_all([RUN], f); run_all([{**RUN, 'seed': 2}, RUN], f)
    assert calls == [0,2]

def test_stopped_and_gone_on(tmp_path, monkeypatch):
    "Ctrl-C in the third of four runs: two records, and the other two after a restart"
    f,n,one = tmp_path/'r.jsonl',[],runner.one_run
    def sometimes(r):
        n.append(r)
        if len(n) == 3: raise KeyboardInterrupt
        return one(r)
    monkeypatch.setattr(runner, 'one_run', sometimes)
    runs = [{**RUN, 'seed': s} for s in range(4)]
    with pytest.raises(KeyboardInterrupt): run_all(runs, f)
    assert [r['seed'] for r in read_records(f)] == [0,1]
    assert [r['seed'] for r in run_all(runs, f)] == [0,1,2,3] and len(n) == 5

def rec(method, seed, error, nll=1., step_ms=2., **args): return dict(method=method, seed=seed, error=error, nll=nll, step_ms=step_ms, args=args)

def test_summary_is_paired():
    t = summary([rec('baseline', 0, 10.), rec('baseline', 1, 20.), rec('VR', 1, 18., step_ms=3., weight=1.), rec('VR', 0, 11., nll=.5, step_ms=2.2, weight=1.)])
    assert (t.error['VR'],t.gain['VR'],t.wins['VR'],t.nll_wins['VR']) == (14.5,.5,1,1)
    close([t.gain_sd['VR'],t.time['VR']], [np.std([-1,2], ddof=1),1.3], eps=1e-9)
    assert 'weight=1' in show_table(t)['arguments']['VR'] and '1 of 2' in show_table(t)['wins']['VR']

def test_rows_of_one_method():
    "A label tells apart what a method's name does not"
    t = summary([rec('baseline', 0, 10.), {**rec('Phantom', 0, 9., k=3), 'label': 'Phantom k=3'}, {**rec('Phantom', 0, 8., k=2), 'label': 'Phantom k=2'}, rec('VR', 0, 7., weight=1.)])
    assert list(t.index) == ['baseline','VR','Phantom k=3','Phantom k=2'] and t.gain['Phantom k=2'] == 2.
    text = winners(t).splitlines()
    assert text[0].index('VR') < text[0].index('Phantom k=2') < text[0].index('Phantom k=3') and text[1] == 'not: none'

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

def small(**kwargs): return {'title': 'small', 'version': 1, 'base': dict(data='mnist', data_args=dict(n_train=1000), net='mlp', epochs=1), 'lrs': [5e-3], 'rows': {}, **kwargs}

def test_fixed_rows_of_a_suite():
    s = Suite(small(rows={'Phantom k=3': dict(of='Phantom', args=dict(k=3))}, seeds=2))
    lrs = s.choose_lrs([])
    assert s.lr_runs() == s.strength_runs(lrs) == [] and lrs == {None: 5e-3}
    runs = s.test_runs(lrs, {})
    assert [(r['seed'],r.get('label', r['method']),r['args']) for r in runs] == [(i,*row) for i in (0,1) for row in (('baseline',{}),('Phantom k=3',dict(k=3)))]
    assert all('n_valid' not in r['data_args'] for r in runs)

def test_itra_does_not_collapse():
    "1,000 MNIST images, the MLP without normalisation, Adam 1e-3, weight 0.6, five seeds: no run is above its baseline + 2 points; without a warm-up it is a guess"
    spec = Suite.load('itra-collapse').spec
    suite = Suite({**spec, 'base': {**spec['base'], 'data_args': dict(n_train=1000, n_valid=2000), 'points': 1, 'last': 1}, 'rows': {'ITRA-c': {}, 'none': spec['rows']['none']}})
    errors = {(r.get('label', r['method']),r['seed']): one_run(r)['error'] for r in suite.test_runs(suite.choose_lrs([]), {}) if r['seed'] == 0 or r.get('label') != 'none'}
    assert all(errors['ITRA-c',s] < errors['baseline',s] + 2 for s in range(5)), errors
    assert errors['none',0] > 80

def test_a_suite_chooses_on_the_validation_split(monkeypatch, tmp_path):
    "The best on validation is taken, whatever the test set says; the stages share no seed and no data"
    s = Suite(small(lrs=[1e-3,1e-2], rows={'VR': dict(grid=dict(weight=[.1,1.]))}, tune=dict(n_valid=500, seeds=[100,101]), seeds=3))
    asked = []
    def fake(runs, *args, **kwargs):
        asked.extend(runs)
        good = lambda r: (r['lr'] == 1e-2) + (r['args'].get('weight') == .1)
        return [{**r, 'error': 10.-good(r) if r['stage'] != 'test' else good(r), 'nll': 1.} for r in runs]
    monkeypatch.setattr(suite_module, 'run_all', fake)
    s.bench(tmp_path/'nothing.jsonl')
    test = [r for r in asked if r['stage'] == 'test']
    assert {r['lr'] for r in test} == {1e-2} and {r['args'].get('weight') for r in test} == {None,.1}
    assert all('n_valid' in r['data_args'] for r in asked if r not in test) and not any('n_valid' in r['data_args'] for r in test)
    assert {r['seed'] for r in test} == {0,1,2} and {r['seed'] for r in asked if r not in test} == {100,101}

# The command

def command(*args): return subprocess.run([sys.executable, '-W', 'ignore', '-c', 'from latentreg_fastai.bench import main; main()', *map(str, args)], capture_output=True, text=True)

def test_demo(tmp_path):
    out = tmp_path/'out'
    small = ('demo', '--methods', 'baseline', 'cw-VR', '--seeds', 2, '--out', out)
    p = command(*small)
    assert p.returncode == 0, p.stderr
    table = pd.read_csv(out/'demo.csv').set_index('method')
    assert list(table.index) == ['baseline','cw-VR'] and (table.seeds == 2).all() and table.error.between(0, 60).all()
    with Image.open(out/'demo.png') as im: assert im.width > 500
    assert all(w in p.stdout for w in ('error %','NLL','time a step','cw-VR','left out: ManifoldMixup'))
    again = command(*small)
    assert again.returncode == 2 and '--force' in again.stderr and 'demo.csv' in again.stderr
    before = (out/'demo.csv').stat().st_mtime_ns
    assert command(*small, '--force').returncode == 0 and (out/'demo.csv').stat().st_mtime_ns > before

def test_demo_has_everything_that_fits():
    c = Suite.load('digits').conditions[None]
    assert {r['of'] for r in c['rows'].values()} == set(methods) - set(of_fastai) - set(of_other_tasks) and c['seeds'] == [0,1,2]

@pytest.mark.parametrize('args,said', [(('demo','--methods','Dropout'), ['unknown method Dropout','ManifoldMixup','cw-VR']), (('demo','--seeds','0'), ['--seeds must be 1 or more']),
                                       (('bench','imagenet'), ['imagenet','mnist-1k','.yaml']), ((), ['required'])])
def test_wrong_words(args, said):
    p = command(*args)
    assert p.returncode == 2 and all(s in p.stderr for s in said), p.stderr

def test_help():
    p = command('demo', '--help')
    assert p.returncode == 0 and all(s in p.stdout for s in ('--out','--force','--methods','--seeds','demo.csv','no download'))

def test_speed():
    t = speed(['cw-VR'], rounds=1, settings=['MLP, batch 100, TensorDL'])
    assert list(t.index) == ['baseline again','cw-VR','baseline, ms a step'] and (t > 0).all().all()
