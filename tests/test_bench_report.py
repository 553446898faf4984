"What a report says of records: tests and their correction, tables, the papers' figures, pictures and files."
import csv, json, math, re
import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest, yaml
from matplotlib.colors import same_color
from PIL import Image
from scipy import stats
from latentreg_fastai.bench import report as report_module
from latentreg_fastai.bench import Report, Suite, decimals_of, equal_cost, failures, grids, holm, paired, paper_figures, plot_curves, plot_gains, plot_table, rows_of, show_table, summary, winners

def close(a, b): np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close('all')

# The paired test

def test_paired_by_hand():
    "Five differences 1, 2, 3, 4, 0: mean 2, variance 2.5, t(.975, 4) = 2.776445"
    p = paired([11,12,13,14,10], [10,10,10,10,10])
    half = 2.7764451051977987*math.sqrt(2.5/5)
    close([p[k] for k in ('gain','gain_sd','low','high')], [2, math.sqrt(2.5), 2-half, 2+half])
    assert (p['wins'],p['n']) == (4,5)
    x = 4/(4+8)                                           # t² = 4/(2.5/5) = 8; for 4 degrees the two tails are 1 − the integral, in closed form
    close(p['p'], 1 - math.sqrt(1-x)*(1+x/2))

@pytest.mark.parametrize('n', [5, 6, 20])
def test_paired_is_scipys(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        a = rng.normal(10, 2, n); b = a - rng.normal(.5, 1, n)
        p,t = paired(list(a), list(b)),stats.ttest_rel(a, b)
        ci = t.confidence_interval(.95)
        close([p['p'],p['low'],p['high'],p['gain']], [t.pvalue,ci.low,ci.high,np.mean(a)-np.mean(b)])
        assert (p['p'] < .05) == (not p['low'] <= 0 <= p['high'])
        back = paired(b, a)
        close([back[k] for k in ('gain','low','high','p')], [-p['gain'],-p['high'],-p['low'],p['p']])

@pytest.mark.parametrize('n', [2, 3, 4])
def test_fewer_than_five_seeds_have_an_interval_and_no_test(n):
    p = paired(np.arange(n)*2., np.arange(n))
    assert math.isnan(p['p']) and p['low'] < p['gain'] < p['high'] and p['n'] == n

def test_one_seed_and_none():
    one,none = paired([3.], [1.]),paired([], [])
    assert (one['gain'],one['wins'],one['n']) == (2.,1,1) and none['n'] == none['wins'] == 0
    assert all(math.isnan(one[k]) for k in ('gain_sd','low','high','p')) and all(math.isnan(none[k]) for k in ('gain','low','high','p'))

def test_no_spread():
    "The same difference in every seed leaves no spread to judge it by: the sign test of scipy; no difference is none"
    from scipy.stats import binomtest
    same,less = paired([3.]*5, [3.]*5),paired([3.]*5, [2.]*5)
    assert (same['p'],same['gain'],same['wins']) == (1.,0.,0) and math.isnan(less['low']) and math.isnan(less['high']) and less['wins'] == 5
    assert less['p'] == binomtest(5, 5).pvalue == .0625 and paired([3.]*9, [2.]*9)['p'] == binomtest(9, 9).pvalue
    rounded = np.float32([10.1,11.2,12.3,13.4,14.5])     # as errors are that come from single precision
    assert paired(rounded, rounded - np.float32(.25))['p'] == .0625

def test_a_missing_error_is_no_proof():
    p = paired([3.,3.,3.,3.,math.nan], [2.,1.,2.,1.,2.])
    assert math.isnan(p['gain']) and math.isnan(p['p'])

# Holm

def rejected(ps, alpha):
    "Holm's procedure in words: from the smallest on, reject while p ≤ α/(tests not yet rejected)"
    left,res = [i for i,p in enumerate(ps) if not math.isnan(p)],set()
    while left:
        i = min(left, key=lambda i: ps[i])
        if ps[i] > alpha/len(left): break
        res.add(i); left.remove(i)
    return res

def test_holm_rejects_what_the_procedure_does():
    "A corrected p is the smallest α at which the test is rejected"
    rng = np.random.default_rng(0)
    for n in (1,2,3,8,15):
        for _ in range(40):
            ps = rng.random(n)**rng.integers(1, 6)
            ps[rng.random(n) < .2] = math.nan
            adj = holm(ps)
            assert np.array_equal(np.isnan(adj), np.isnan(ps))
            alphas = [*rng.random(10), .05, .01, *(a*f for a in adj[~np.isnan(adj)] if a < 1 for f in (1-1e-9,1+1e-9))]
            for alpha in alphas: assert rejected(ps, alpha) == set(np.flatnonzero(adj <= alpha))

@pytest.mark.parametrize('ps,want', [
    ([.01,.04,.03,.005], [.03,.06,.06,.02]), ([.02,.02,.02], [.06,.06,.06]), ([.5,.4], [.8,.8]), ([.9,.8,.7], [1,1,1]), ([.03], [.03]), ([0,1], [0,1]),
    ([math.nan,.01,math.nan,.02], [math.nan,.02,math.nan,.02]), ([math.nan], [math.nan]), ([], []), ([.01,.01,.03], [.03,.03,.03])], ids=str)
def test_holm_known(ps, want): close(holm(ps), want)

def test_holm_keeps_the_order_and_takes_a_column():
    rng = np.random.default_rng(1)
    for _ in range(50):
        ps = pd.Series(rng.random(9).round(1), index=list('ihgfedcba'))
        adj = holm(ps)
        assert (adj >= ps.to_numpy()).all() and (adj <= 1).all()
        for i in range(9):
            for j in range(9): assert (adj[i] <= adj[j]) if ps.iloc[i] < ps.iloc[j] else (adj[i] == adj[j] or ps.iloc[i] != ps.iloc[j])

def test_luck_alone_passes_in_one_report_of_twenty():
    "2,000 comparisons of eight methods that change nothing, five seeds, one baseline for all: any p below .05 in at most 5%; without correction in many"
    rng = np.random.default_rng(0)
    base,other = rng.normal(10, 1, (2000,1,5)),rng.normal(10, 1, (2000,8,5))
    ps = stats.ttest_rel(np.broadcast_to(base, other.shape), other, axis=-1).pvalue
    adj = np.stack([holm(p) for p in ps])
    for i in range(10): close([paired(base[i,0], o)['p'] for o in other[i]], ps[i])
    names = ['cw-VR','VR','cw-CR','CR','Phantom','ITRA-c','CenterLoss','WeightL1']
    t = summary([rec('baseline', s, base[0,0,s]) for s in range(5)] + [rec(m, s, other[0,k,s]) for k,m in enumerate(names) for s in range(5)])
    close(t.p_holm[names], adj[0])
    any_below = (adj < .05).any(1).mean()
    assert .015 < any_below < .05 + 3*math.sqrt(.05*.95/2000) and (ps < .05).any(1).mean() > .15

# Tables

def rec(method, seed, error, label=None, **kwargs):
    r = dict(method=method, seed=seed, error=float(error), nll=error/10, step_ms=2., args={}, stage='test', error_last5=float(error), nll_last5=error/10) | kwargs
    return r if label is None else {**r, 'label': label}

def bad(method, seed, label=None, **kwargs):
    return dict(method=method, seed=seed, args={}, stage='test', failed='RuntimeError: no memory', traceback='…') | kwargs | ({} if label is None else dict(label=label))

BASE,VR,CR = [20.,22.,21.,25.,23.],[19.,20.,20.5,23.,20.],[20.5,21.,22.,25.5,22.]
def three(): return [rec('baseline', s, e) for s,e in enumerate(BASE)] + [rec('cw-VR', s, e, step_ms=3., args=dict(weight=.1)) for s,e in enumerate(VR)] + [rec('CR', s, e) for s,e in enumerate(CR)]

def test_summary_figures():
    t = summary(three())
    assert list(t.index) == ['baseline','cw-VR','CR'] and (t.seeds == 5).all() and t.args['cw-VR'] == 'weight=0.1'
    for m,v in (('baseline',BASE), ('cw-VR',VR), ('CR',CR)):
        close([t.error[m],t.error_sd[m],t.nll[m],t.nll_sd[m]], [np.mean(v),np.std(v, ddof=1),np.mean(v)/10,np.std(v, ddof=1)/10])
    ps = [stats.ttest_rel(BASE, v).pvalue for v in (VR,CR)]
    close([t.p['cw-VR'],t.p['CR']], ps)
    assert ps[0] < ps[1]
    close([t.p_holm['cw-VR'],t.p_holm['CR']], [2*ps[0],max(2*ps[0],ps[1])])
    assert (t.wins['cw-VR'],t.wins['CR'],t.nll_wins['cw-VR']) == (5,2,5)
    close([t.time['cw-VR'],t.time['CR'],t.gain['baseline']], [1.5,1,0])
    assert math.isnan(t.p['baseline']) and math.isnan(t.p_holm['baseline'])

def test_records_in_any_order():
    "Seeds are matched, and the baseline stays first, as records of many processes come as they end"
    rs = three() + [rec('baseline', s, e-.5, 'Dropout') for s,e in enumerate(BASE)] + [rec('baseline', s, e-1, 'baseline ×2') for s,e in enumerate(BASE)]
    want = summary(rs)
    assert list(want.index) == ['baseline','Dropout','cw-VR','CR','baseline ×2']
    for seed in range(5):
        got = summary([rs[i] for i in np.random.default_rng(seed).permutation(len(rs))])
        pd.testing.assert_frame_equal(got.loc[want.index], want)
    assert list(summary(rs[::-1]).index)[0] == 'baseline'

def test_failed_records_do_not_count():
    "The figures are those of the runs that ended well"
    rs = three()
    t = summary([bad('cw-VR', 7), *rs, bad('baseline', 8), bad('Phantom', 0)])
    want = summary(rs)
    pd.testing.assert_frame_equal(t.loc[want.index, want.columns], want)
    assert 'failed' not in want and failures(want) == ''
    assert list(rows_of([*rs, bad('cw-VR', 3)])['cw-VR'].index) == list(range(5)) and rows_of([bad('VR', 0)]) == rows_of([]) == {}
    with_empty = rows_of([*rs, bad('VR', 3)], empty=True)
    assert list(with_empty) == ['baseline','cw-VR','VR','CR'] and len(with_empty['VR']) == 0

def test_failed_runs_are_told():
    "In the table, with the first error: a row without any run that ended well, one that lacks some; not one whose seed ended well in another run"
    t = summary([bad('CR', 9, failed='ValueError: a\nb'), bad('Phantom', 0, args=dict(k=3)), *three(), bad('Phantom', 1), bad('CR', 8), bad('baseline', 2)])
    assert list(t.index) == ['baseline','cw-VR','CR','Phantom'] and list(t.seeds) == [5,5,5,0] and list(t.failed) == [0,0,2,2]
    assert list(t.first_error) == ['','','ValueError: a\nb','RuntimeError: no memory'] and t.args['Phantom'] == 'k=3'
    assert t.loc['Phantom', ['error','nll','gain','p','p_holm','time']].isna().all() and t.p_holm['CR'] == summary(three()).p_holm['CR']
    assert failures(t).splitlines() == ['failed: CR (2 of 7 seeds), with ValueError: a b', 'failed: Phantom (2 of 2 seeds), with RuntimeError: no memory']
    shown = show_table(t)
    assert list(shown.failed) == ['','','2 of 7','2 of 2'] and set(shown.loc['Phantom'].drop(['failed','arguments'])) == {''} and shown['error %']['CR'] == show_table(summary(three()))['error %']['CR']
    text = winners(t).splitlines()
    assert not any('Phantom' in l for l in text[:3]) and text[3:] == failures(t).splitlines()
    one = failures(summary([*three(), *[bad(m, 0) for m in ('VR','ITRA')]]))
    assert one == 'failed: VR (1 of 1 seeds), ITRA (1 of 1 seeds), with RuntimeError: no memory'     # the same error is said once

def test_a_baseline_that_failed():
    "It is told, and nothing is compared"
    t = summary([bad('baseline', 0), rec('CR', 0, 10.)])
    assert list(t.index) == ['baseline','CR'] and 'gain' not in t and list(show_table(t).failed) == ['1 of 1','']
    assert winners(t).splitlines() == ['nothing is compared: no run of the baseline has ended well', failures(t)] and 'baseline (1 of 1 seeds)' in failures(t)

def test_nothing_but_failed_runs():
    t = summary([bad(m, s) for m in ('cw-VR','baseline') for s in (0,1)])
    assert list(t.index) == ['baseline','cw-VR'] and list(t.failed) == [2,2] and set(show_table(t)['error %']) == {''}
    axs = plot_table([bad('CR', 0), bad('baseline', 0)])
    assert [l.get_text() for l in axs[0].get_yticklabels()] == ['baseline, failed: 1 of 1','CR, failed: 1 of 1']
    with pytest.raises(ValueError, match='summary: there are no records'): summary([])

def test_seeds_that_are_missing():
    "Only the seeds that both have are compared, and the table says how many"
    rs = [r for r in three() if (r['method'],r['seed']) not in (('baseline',4),('cw-VR',0))]
    t = summary(rs)
    want = paired(BASE[1:4], VR[1:4])
    close([t.gain['cw-VR'],t.low['cw-VR'],t.high['cw-VR']], [want['gain'],want['low'],want['high']])
    assert t.wins['cw-VR'] == want['wins'] == 3 and t.seeds['cw-VR'] == 4 and math.isnan(t.p['cw-VR'])
    close(t.error['cw-VR'], np.mean(VR[1:]))              # its own mean is over all it has
    assert show_table(t).wins['cw-VR'] == '3 of 3'
    assert 'cw-VR (+1.50 points, 3 of 3 seeds)' in winners(t)

def test_the_last_of_two_records_counts():
    t = summary([*three(), rec('cw-VR', 2, 10.), rec('baseline', 0, 30.)])
    close([t.error['cw-VR'],t.error['baseline'],t.gain['cw-VR']], [np.mean([19,20,10,23,20]),np.mean([30,22,21,25,23]),np.mean([11,2,11,2,3])])
    assert (t.seeds == 5).all()

def test_labels_are_rows_of_their_own():
    t = summary([*three(), *[rec('cw-VR', s, e-1, 'cw-VR, weight 9', args=dict(weight=9)) for s,e in enumerate(VR)], rec('cw-VR', 0, 5., 'cw-VR')])
    assert list(t.index) == ['baseline','cw-VR','cw-VR, weight 9','CR'] and t.args['cw-VR, weight 9'] == 'weight=9'
    close([t.error['cw-VR'],t.error['cw-VR, weight 9']], [np.mean([5,*VR[1:]]),np.mean(VR)-1])

def test_holm_is_over_methods_and_not_over_longer_baselines():
    long = [rec('baseline', s, e-3-.1*s, f'baseline ×{n}') for n in (2,'1.5') for s,e in enumerate(BASE)]
    t,without = summary([*three(), *long]),summary(three())
    assert list(t.index)[-2:] == ['baseline ×2','baseline ×1.5'] and t.p_holm[t.index.str.startswith('baseline')].isna().all()
    close(t.p_holm[['cw-VR','CR']], without.p_holm[['cw-VR','CR']])
    drop = summary([*three(), *[rec('baseline', s, e-.1*s, 'Dropout') for s,e in enumerate(BASE)]])
    close(drop.p_holm['cw-VR'], 3*drop.p['cw-VR'])        # Dropout is a method like the others, whatever it is made of
    assert drop.p['cw-VR'] < min(drop.p['CR'], drop.p['Dropout'])

def test_another_base():
    t = summary(three(), 'CR')
    close([t.gain['cw-VR'],t.gain['CR']], [np.mean(CR)-np.mean(VR),0])
    assert math.isnan(t.p['CR']) and math.isnan(t.p_holm['CR'])

def test_only_the_baseline_and_only_a_method():
    alone = summary([r for r in three() if r['method'] == 'baseline'])
    assert list(alone.index) == ['baseline'] and show_table(alone)['error %']['baseline'] == '22.20 ± 1.92'
    assert 'none' in winners(alone).splitlines()[0]
    without = summary([r for r in three() if r['method'] != 'baseline'])
    assert list(without.index) == ['cw-VR','CR'] and 'gain' not in without and 'wins' not in show_table(without)

def test_a_method_with_one_seed():
    t = summary([r for r in three() if r['method'] != 'CR' or r['seed'] == 3])
    shown = show_table(t).loc['CR']
    assert (shown['error %'],shown['gain, points'],shown['95% interval'],shown['p (Holm)'],shown['wins']) == ('25.50','-0.50','','','0 of 1')
    close(t.p_holm['cw-VR'], t.p['cw-VR'])                # one test, nothing to correct

def test_what_a_reader_sees():
    shown = show_table(summary(three())).loc
    assert list(shown['cw-VR']) == ['weight=0.1','20.50 ± 1.50','2.050 ± 0.150','1.70 ± 0.97','0.49 to 2.91','5 of 5',f"{holm([stats.ttest_rel(BASE, v).pvalue for v in (VR,CR)])[0]:.3f}",'5 of 5','1.50×']
    assert set(shown['baseline'][['gain, points','95% interval','wins','p (Holm)','better NLL']]) == {''}

def test_records_of_older_versions():
    "Without ece, brier and memory, or with them in some records alone"
    t = show_table(summary(three()))
    assert 'ECE %' not in t and 'memory' not in t
    new = [{**r, 'ece': .02, 'brier': .1, 'memory_mb': 50.} for r in three()]
    t = show_table(summary(new))
    assert t['ECE %']['CR'] == '2.00 ± 0.00' and t.memory['CR'] == '1.00×'
    mixed = show_table(summary([r if r['method'] == 'baseline' else n for r,n in zip(three(), new)]))
    assert mixed['ECE %']['baseline'] == '' and mixed['ECE %']['CR'] == '2.00 ± 0.00'
    assert mixed.memory['CR'] == ''

def test_no_seed_in_common():
    t = show_table(summary([rec('baseline', 0, 10.), rec('CR', 1, 9.)]))
    assert t['gain, points']['CR'] == '' and t['error %']['CR'] == '9.00'
    assert t['time a step']['CR'] == ''

def diverged(): return [{**r, 'error': 90., 'nll': math.nan} if (r['method'],r['seed']) == ('cw-VR',2) else r for r in three()]

def test_a_diverged_run_shows():
    t = summary(diverged())
    assert t.seeds['cw-VR'] == 5
    close(t.error['cw-VR'], np.mean([19,20,90,23,20]))
    assert (t.wins['cw-VR'],t.nll_wins['cw-VR'],t.gain['cw-VR'] < 0) == (4,4,True)
    assert not np.isfinite(t.nll['cw-VR'])
    assert show_table(t).NLL['cw-VR'] not in ('', f'{np.mean([1.9,2.,2.3,2.]):.3f} ± {np.std([1.9,2.,2.3,2.], ddof=1):.3f}')
    assert 'lower NLL on average: cw-VR' not in winners(t)

def test_a_diverged_baseline_shows():
    "A method that has an NLL is better than a baseline that has none"
    t = summary([{**r, 'error': 90., 'nll': math.nan} if (r['method'],r['seed']) == ('baseline',1) else r for r in three()])
    assert not np.isfinite(t.nll['baseline']) and t.nll_wins['cw-VR'] == 5

def test_an_error_that_is_nan_shows():
    t = summary([{**r, 'error': math.nan} if (r['method'],r['seed']) == ('cw-VR',2) else r for r in three()])
    assert math.isnan(t.error['cw-VR'])
    assert math.isnan(t.p['cw-VR']) and math.isnan(t.p_holm['cw-VR'])
    assert show_table(t)['error %']['cw-VR'] != ''

# Suites

SPEC = yaml.safe_load('''
title: A suite of two conditions
about: Made by hand.
version: 1
base: {data: digits, net: small_cnn, epochs: 10}
lrs: [0.01, 0.1]
tune: {n_valid: 360, seeds: [100, 101]}
seeds: 5
rows:
  cw-VR: {grid: {weight: [0.1, 1]}}
  ITRA-c: {args: {weight: 0.6}, cost: 2}
  Phantom k=3: {of: Phantom, args: {k: 3}, cost: 3}
conditions:
  small: {base: {data_args: {n_train: 100}}}
  large: {base: {data_args: {n_train: 1000}}}
paper:
- source: some paper, Table 1
  measure: accuracy
  values:
    small: {baseline: [92.13, 0.5], cw-VR: [93], Mixup of old: [91.5]}
- source: some paper, Table 2
  measure: nll
  values:
    all: {baseline: [0.4], ITRA-c: [0.25, 0.01]}
- source: another paper
  measure: error
  values:
    large: {baseline: [5.5]}
''')

def suite(): return Suite(SPEC, 'made')

OFF = {'baseline': 0., 'cw-VR': 1.5, 'ITRA-c': .8, 'Phantom k=3': -.4, 'baseline ×2': .5, 'baseline ×3': .9}
COST = {'ITRA-c': 2., 'Phantom k=3': 3.}

def result(run, error):
    "The record of a run that ended with `error`"
    curve = [dict(epoch=e, train_loss=1/(e+1), nll=error/10 + 9-e, error=error + 9-e) for e in (0,5,9)]
    return {**run, 'error': error, 'nll': error/10, 'ece': .03, 'brier': .2, 'error_last5': error+.25, 'nll_last5': error/10, 'curve': curve, 'terms': {}, 'step_ms': 2*COST.get(run.get('label', run['method']), 1.),
            'images_s': 100., 'memory_mb': 60., 'seconds': 36., 'device': 'cpu', 'threads': 1, 'versions': dict(python='3.11', torch='2.0')}

def failing(run, why='RuntimeError: no memory'): return {**run, 'failed': why, 'traceback': '…', 'versions': {}}

def label(r): return r.get('label', r['method'])

def records(conditions=('small','large')):
    "Of all stages: the rate 0.1 and the weight 1 are best on held-out data"
    s,rng = suite(),np.random.default_rng(0)
    noise = {k: rng.normal(0, .2) for k in [(m,i) for m in OFF for i in range(5)]}
    rs = [result(r, 12. - (r['lr'] == .1) + .1*(r['seed'] == 101)) for r in s.lr_runs()]
    rs += [result(r, 11. - (r['args']['weight'] == 1)) for r in s.strength_runs(dict(small=.1, large=.1))]
    best = {(c,'cw-VR'): dict(weight=1) for c in ('small','large')}
    rs += [result(r, (15. if r['condition'] == 'small' else 6.) + .3*r['seed'] - OFF[label(r)] + noise[label(r),r['seed']]) for r in s.test_runs(dict(small=.1, large=.1), best)]
    return [r for r in rs if r['condition'] in conditions]

def of(rs, c): return [r for r in rs if r['stage'] == 'test' and r['condition'] == c]
def errors(rs, c, m): return [r['error'] for r in sorted(of(rs, c), key=lambda r: r['seed']) if label(r) == m]

def test_equal_cost_compares_twice():
    rs = records()
    t = equal_cost(suite().costs('small'), of(rs, 'small'))
    assert list(t.index) == ['ITRA-c','Phantom k=3'] and list(t.cost) == [2,3] and list(t.time) == [2.,3.]
    for m,long in (('ITRA-c','baseline ×2'), ('Phantom k=3','baseline ×3')):
        for k,base in (('epochs','baseline'), ('cost',long)):
            a,b = (np.array(errors(rs, 'small', o)) for o in (base, m))
            test = stats.ttest_rel(a, b); ci = test.confidence_interval(.95)
            close([t.loc[m,f'gain_{k}'],t.loc[m,f'low_{k}'],t.loc[m,f'high_{k}']], [(a-b).mean(),ci.low,ci.high])
            assert (t.loc[m,f'wins_{k}'],t.loc[m,f'n_{k}']) == ((a > b).sum(),5)
    raw = [stats.ttest_rel(errors(rs, 'small', l), errors(rs, 'small', m)).pvalue for m,l in (('ITRA-c','baseline ×2'),('Phantom k=3','baseline ×3'))]
    close(t.p_cost, [min(1, 2*p) if p == min(raw) else max(p, 2*min(raw)) for p in raw])

def test_equal_cost_with_what_there_is():
    "A method, its long baseline or seeds may be missing"
    rs = of(records(), 'small')
    t = equal_cost(suite().costs('small'), [r for r in rs if label(r) != 'baseline ×3'])
    assert list(t.index) == ['ITRA-c'] and not len(equal_cost(suite().costs('small'), [r for r in rs if 'cost' not in suite().conditions['small']['rows'][label(r)]]))
    few = [r for r in rs if not (label(r) == 'baseline ×2' and r['seed'] > 2)]
    t = equal_cost(suite().costs('small'), [failing(r) if label(r) == 'ITRA-c' and r['seed'] == 0 else r for r in few]).loc['ITRA-c']
    assert (t.n_epochs,t.n_cost) == (4,2) and math.isnan(t.p_epochs) and math.isnan(t.p_cost)
    close(t.gain_cost, np.mean(np.subtract(errors(rs, 'small', 'baseline ×2')[1:3], errors(rs, 'small', 'ITRA-c')[1:3])))

def test_grids_show_every_value():
    rs = records()
    g = grids(suite(), rs, 'large')
    assert [tuple(r) for r in g.reset_index().to_numpy()] == [('baseline','lr','0.01: 12.00, 12.10; 0.1: 11.00, 11.10','0.1'), ('cw-VR','weight','0.1: 11.00, 11.00; 1: 10.00, 10.00','1')]
    s = suite()
    taken = s.choose_lrs([r for r in rs if r['stage'] == 'lr']),s.choose_strengths([r for r in rs if r['stage'] == 'strength'])
    assert taken == (dict(small=.1, large=.1), {(c,'cw-VR'): dict(weight=1.) for c in ('small','large')})   # what is shown as taken is what was taken

def test_grids_with_failures():
    rs = [failing(r) if r['stage'] == 'lr' and r['lr'] == .1 or r['stage'] == 'strength' and r['condition'] == 'small' else r for r in records()]
    g = grids(suite(), rs, 'small')
    assert list(g.tried) == ['0.01: 12.00, 12.10; 0.1: failed, failed','0.1: failed, failed; 1: failed, failed'] and list(g.taken) == ['0.01','']
    assert len(grids(suite(), of(rs, 'small'), 'small')) == 0

def test_a_diverged_rate_is_not_taken():
    "Equal in error on the whole, one of them with a seed that has no NLL"
    s = Suite({**SPEC, 'conditions': None}, 'made')
    runs = [{**result(r, 12.), 'nll': {(.01,100): math.nan, (.01,101): .1}.get((r['lr'],r['seed']), 1.)} for r in s.lr_runs()]
    assert s.choose_lrs(runs) == {None: .1}

def test_paper_figures():
    rs = records()
    t = summary(of(rs, 'small'))
    p = paper_figures(suite(), t, 'small')
    assert list(p.columns) == ['measured here, error','some paper, Table 1, 100 − accuracy','measured here, nll','some paper, Table 2, nll']
    assert list(p.index) == [*t.index, 'Mixup of old']
    assert list(p.loc['baseline'])[1::2] == ['7.87 ± 0.5','0.4'] and list(p.loc['cw-VR'])[1::2] == ['7','–'] and list(p.loc['ITRA-c'])[1::2] == ['–','0.25 ± 0.01']
    assert list(p.loc['Mixup of old']) == ['–','8.5','–','–']                        # not measured here, and nothing takes its place
    for m in t.index: assert list(p.loc[m])[::2] == [f'{t.error[m]:.2f} ± {t.error_sd[m]:.2f}',f'{t.nll[m]:.3f} ± {t.nll_sd[m]:.3f}']
    assert list(paper_figures(suite(), summary(of(rs, 'large')), 'large').columns) == ['measured here, nll','some paper, Table 2, nll','measured here, error','another paper, error']

def test_no_paper():
    s,t = Suite({k: v for k,v in SPEC.items() if k != 'paper'}, 'made'),summary(of(records(), 'small'))
    assert len(paper_figures(s, t, 'small')) == 0
    only = Suite({**SPEC, 'paper': SPEC['paper'][2:]}, 'made')
    assert len(paper_figures(only, t, 'small')) == 0      # figures of another condition only

# Pictures

def marked(ax):
    "Of each row from below: its name and cost, gain, interval, and whether the mark is filled"
    names,res = [t.get_text() for t in ax.get_yticklabels()],[]
    for box,name in zip(ax.containers, names, strict=True):
        line,_,(bar,) = box
        res.append((name, *line.get_xydata()[0], sorted(v for s in bar.get_segments() for v in np.asarray(s)[...,:1].flatten()), not same_color(line.get_mfc(), 'white')))
    return res

def test_plot_gains_draws_the_table():
    "A row for each method, the largest gain at the top, its bar over the interval, filled where the corrected p is below .05"
    tables = {c: summary(of(records(), c)) for c in ('small','large')}
    tables['large'].loc['cw-VR','p_holm'] = .06
    axs = plot_gains(tables)
    for ax,(name,t) in zip(axs, tables.items()):
        t = t[~t.index.str.startswith('baseline')].sort_values('gain')
        assert ax.get_title() == name and ax.get_xlabel() == 'gain, points of error' and len(t) == 3
        for i,(r,(label,x,y,bar,filled)) in enumerate(zip(t.itertuples(), marked(ax), strict=True)):
            assert label == f'{r.Index}, {r.time:.2f}×' and y == i and filled == (r.p_holm < .05)
            close([x,*bar], [r.gain,r.low,r.high])
    assert {m[0].split(',')[0]: m[-1] for m in marked(axs[0])}['cw-VR'] and not {m[0].split(',')[0]: m[-1] for m in marked(axs[1])}['cw-VR']

def test_plot_gains_of_some_rows():
    t = summary([r for r in three() if r['method'] != 'CR' or r['seed'] == 3])
    (ax,) = plot_gains({'': t})
    assert sorted((m[0].split(',')[0],m[-1]) for m in marked(ax))[0] == ('CR',False)         # one seed: a point without a bar, not filled
    (ax,) = plot_gains({'': t}, ['CR'])
    assert [m[:3] for m in marked(ax)] == [('CR, 1.00×',-.5,0)]

def test_plot_gains_says_what_failed():
    "Below each panel; a row that failed everywhere has no mark, a panel without a baseline is empty"
    t,none = summary([*three(), *[bad('Phantom', s) for s in range(5)], bad('CR', 7)]),summary([bad('baseline', 0), rec('CR', 0, 10.)])
    a,b = plot_gains({'one': t, 'two': none})
    assert a.get_xlabel() == 'gain, points of error\nfailed: CR (1 of 6), Phantom (5 of 5)' and b.get_xlabel().endswith('\nfailed: baseline (1 of 1)')
    assert {m[0].split(',')[0] for m in marked(a)} == {'cw-VR','CR'} and not marked(b)

def points(ax): return [s.get_offsets().data.tolist() for s in ax.collections]

def test_plot_table():
    rs = three()
    a,b = plot_table([*rs, bad('cw-VR', 9), bad('Phantom', 0)], 'a title')
    t = summary(rs)
    assert [l.get_text() for l in a.get_yticklabels()] == ['baseline, 1.00×','cw-VR  (weight=0.1), 1.50×, failed: 1 of 6','CR, 1.00×','Phantom, failed: 1 of 1'] and a.yaxis_inverted()
    assert a.figure._suptitle.get_text() == 'a title' and (a.get_xlabel(),b.get_xlabel()) == ('error %','negative log-likelihood')
    for ax,col,values in ((a,'error',(BASE,VR,CR)), (b,'nll',[np.array(v)/10 for v in (BASE,VR,CR)])):
        assert points(ax) == [*[[[x,i] for x in v] for i,v in enumerate(values)], []]
        means = [l.get_xdata()[0] for l in ax.lines]
        close(means, [*t[col], math.nan, t[col]['baseline']])       # a bar for each that has runs, and the baseline's line
        assert [x.get_text() for x in ax.texts] == [*[f'{v:.2f}' for v in t[col]], 'failed']
    a,_ = plot_table(rs, time=False)
    assert a.get_yticklabels()[2].get_text() == 'CR'

def test_plot_table_of_one_row_and_without_baseline():
    a,_ = plot_table([rec('baseline', 0, 10.)])
    assert points(a) == [[[10.,0]]]
    a,_ = plot_table([rec('CR', 0, 10.), rec('VR', 0, 9.)])
    assert [l.get_text() for l in a.get_yticklabels()] == ['VR','CR']

def test_plot_table_shows_a_diverged_run():
    _,b = plot_table(diverged())
    assert [t.get_text() for t in b.texts][1] != f'{np.mean([1.9,2.,2.3,2.]):.2f}'

def test_plot_curves():
    rs = of(records(), 'small')
    rs = [failing(r) if (label(r),r['seed']) in (('cw-VR',0),('ITRA-c',4)) else r for r in rs]
    ax = plot_curves(rs)
    lost = {'cw-VR': ', failed: 1 of 5', 'ITRA-c': ', failed: 1 of 5'}
    assert [l.get_label() for l in ax.lines] == [m + lost.get(m, '') for m in rows_of(rs)] and ax.get_ylabel() == 'NLL'
    for l,m in zip(ax.lines, rows_of(rs)):
        mine = [r['curve'] for r in rs if label(r) == m and 'failed' not in r]
        assert len(mine) == 4 + (m not in lost)
        close(l.get_xydata(), [[e,np.mean([c[k]['nll'] for c in mine])] for k,e in enumerate((0,5,9))])
    ax = plot_curves(rs, ['ITRA-c'], 'error')
    assert len(ax.lines) == 1 and ax.get_ylabel() == 'error %'
    ax = plot_curves([failing(r) if label(r) == 'cw-VR' else r for r in rs])
    assert len(ax.lines) == 6 and [len(l.get_xdata()) for l in ax.lines if l.get_label() == 'cw-VR, failed: 5 of 5'] == [0]

# The report

def write(folder, rs, spec=SPEC):
    (folder/'records.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rs))
    if spec is not None: (folder/'suite.yaml').write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True), encoding='utf8')
    return folder

def cells(line): return [c.strip().replace('\\|', '|') for c in re.split(r'(?<!\\)\|', line)[1:-1]]

def tables(md):
    "The tables of a Markdown text, by the heading above each: lists of rows, the first the header; each whole"
    res,head = {},''
    blocks = md.split('\n\n')
    for b in blocks:
        if b.startswith('#'): head = f'{head.split(" / ")[0]} / {b.lstrip("# ")}' if b.startswith('###') else b.lstrip('# ')
        if b.startswith('|'):
            assert all(l.startswith('|') and l.rstrip().endswith('|') for l in b.strip().splitlines()), b
            res[head] = [cells(l) for l in b.strip().splitlines()]
    for h,t in res.items(): assert len({len(r) for r in t}) == 1 and set(t[1]) == {'---'}, h
    return res

def test_report_files(tmp_path):
    r = Report(write(tmp_path, records()))
    files = r.write()
    assert [f.name for f in files] == ['report.md','report.csv','gains.png','errors-1.png','errors-2.png'] and all(f.parent == tmp_path for f in files)
    for f in files[2:]:
        with Image.open(f) as im: assert im.width > 300 and np.asarray(im.convert('L')).std() > 5
    md = files[0].read_text(encoding='utf8')
    assert md.startswith('# A suite of two conditions\n') and 'Made by hand.' in md and all(f'({f.name})' in md for f in files[2:])
    assert md.startswith(r.markdown().rstrip()) and plt.get_fignums() == []
    assert list(tables(md)) == [f'{c}{p}' for c in ('small','large') for p in ('',' / At equal cost'," / The paper's figures",' / Choices')]
    assert 'Not run' not in md and 'Failed' not in md
    assert f'{len(records())} runs of {len(records())*36/3600:.2f} hours together, on cpu with 1 thread(s)' in md

def test_figures_of_a_report(tmp_path):
    "Those in the text and in the file are what the records give"
    rs = records()
    r = Report(write(tmp_path, rs)); r.write()
    t = tables((tmp_path/'report.md').read_text(encoding='utf8'))
    with open(tmp_path/'report.csv', encoding='utf8') as f: table = {(row['condition'],row['method']): row for row in csv.DictReader(f)}
    assert len(table) == 2*6
    for c in ('small','large'):
        head,_,*body = t[c]
        assert [b[0] for b in body] == ['baseline','cw-VR','Phantom k=3','ITRA-c','baseline ×2','baseline ×3']
        ps = {m: stats.ttest_rel(errors(rs, c, 'baseline'), errors(rs, c, m)).pvalue for m in ('cw-VR','ITRA-c','Phantom k=3')}
        adj,top = {},0
        for k,m in enumerate(sorted(ps, key=ps.get)): top = adj[m] = min(1, max(top, (3-k)*ps[m]))
        for b in body:
            m,e = b[0],np.array(errors(rs, c, b[0]))
            row,gain = dict(zip(head, b)),np.array(errors(rs, c, 'baseline')) - e
            assert row['error %'] == f'{e.mean():.2f} ± {e.std(ddof=1):.2f}' and row['NLL'] == f'{e.mean()/10:.3f} ± {e.std(ddof=1)/10:.3f}'
            assert row['error %, median of the last epochs'] == f'{e.mean()+.25:.2f} ± {e.std(ddof=1):.2f}' and row['ECE %'] == '3.00 ± 0.00'
            if m != 'baseline': assert row['gain, points'] == f'{gain.mean():.2f} ± {gain.std(ddof=1):.2f}' and row['wins'] == f'{(gain > 0).sum()} of 5'
            assert row['p (Holm)'] == ('' if m not in adj else '< 0.001' if adj[m] < .001 else f'{adj[m]:.3f}')
            close([float(table[c,m][k]) for k in ('error','gain')], [e.mean(),gain.mean()])
        head,_,*body = t[f'{c} / At equal cost']
        want = equal_cost(r.suite.costs(c), of(rs, c))
        for b in body:
            w = want.loc[b[0]]
            for k,col in (('epochs','gain at equal epochs'), ('cost','gain at equal cost')): assert dict(zip(head, b))[col].startswith(f"{w[f'gain_{k}']:.2f} ({w[f'low_{k}']:.2f} to {w[f'high_{k}']:.2f}), {int(w[f'wins_{k}'])} of 5, p ")
    assert t['small / Choices'][2:] == [['baseline','lr','0.01: 12.00, 12.10; 0.1: 11.00, 11.10','0.1'],['cw-VR','weight','0.1: 11.00, 11.00; 1: 10.00, 10.00','1']]
    assert ['Mixup of old','–','8.5','–','–'] in t["small / The paper's figures"]

def test_a_condition_that_was_not_run(tmp_path):
    md = Report(write(tmp_path, records(['large']))).markdown()
    assert 'No records exist yet of: small.' in md and '## small' not in md and '## large' in md
    files = Report(tmp_path).write()
    assert [f.name for f in files[2:]] == ['gains.png','errors-2.png']

def test_failures_are_listed(tmp_path):
    rs = records()
    i,j = [i for i,r in enumerate(rs) if label(r) == 'ITRA-c' and r['condition'] == 'small'][:2]
    rs[i],rs[j] = failing(rs[i]),failing(rs[j], 'ValueError: a | b')
    t = tables(Report(write(tmp_path, rs)).markdown())
    assert t['Failed'][2:] == [['ITRA-c','small','test','0','RuntimeError: no memory'],['ITRA-c','small','test','1','ValueError: a | b']]
    row = dict(zip(t['small'][0], t['small'][5]))
    assert row['method'] == 'ITRA-c' and row['p (Holm)'] == '' and row['wins'].endswith('of 3') and row['failed'] == '2 of 5'
    assert all(dict(zip(t['small'][0], r))['failed'] == '' for r in t['small'][2:] if r[0] != 'ITRA-c') and 'failed' not in t['large'][0]
    assert '\n\nfailed: ITRA-c (2 of 5 seeds), with RuntimeError: no memory\n\n' in Report(tmp_path).markdown()

def test_a_failure_of_several_lines(tmp_path):
    "As PyTorch's are: each stays one row of the table, and nothing of it is lost"
    rs = records()
    i = next(i for i,r in enumerate(rs) if label(r) == 'ITRA-c')
    rs[i] = failing(rs[i], 'AcceleratorError: CUDA error\nCompile with TORCH_USE_CUDA_DSA\n\nto see more')
    md = Report(write(tmp_path, rs)).markdown()
    assert 'to see more' in md
    t = tables(md)['Failed']
    assert len(t) == 3 and 'to see more' in t[2][-1]

def test_a_condition_where_every_run_failed(tmp_path):
    "It is told apart from one that was not run"
    rs = [failing(r) if r['condition'] == 'small' else r for r in records()]
    r = Report(write(tmp_path, rs))
    assert list(r.tables) == ['small','large'] and [f.name for f in r.write()[2:]] == ['gains.png','errors-2.png']
    md = r.markdown()
    assert [dict(zip(tables(md)['small'][0], row))['failed'] for row in tables(md)['small'][2:]] == ['5 of 5']*6
    assert len(tables(md)['Failed']) == 2 + sum('failed' in r for r in rs)
    assert 'No records exist yet of: small' not in md

def test_every_run_failed(tmp_path):
    files = Report(write(tmp_path, [failing(r) for r in records()])).write()
    md = files[0].read_text(encoding='utf8')
    assert 'No run has ended well.' in md and 'no memory' in md and len(files) == 2
    t = pd.read_csv(files[1])
    assert len(t) == 2*6 and (t.failed == 5).all() and (t.first_error == 'RuntimeError: no memory').all()

def test_a_row_whose_choices_all_failed(tmp_path):
    "It is in no comparison, and in the table all the same; one of whose choices some ended well is only not run yet"
    rs = [r for r in records() if not (label(r) == 'cw-VR' and r['stage'] == 'test')]
    rs = [failing(r) if r['stage'] == 'strength' and (r['condition'] == 'small' or r['args'] == dict(weight=1)) else r for r in rs]
    r = Report(write(tmp_path, rs))
    assert list(r.tables['small'].index)[1] == 'cw-VR' and r.tables['small'].failed['cw-VR'] == 2 and 'cw-VR' not in r.tables['large'].index and 'failed' not in r.tables['large']
    assert 'failed: cw-VR (2 of 2 seeds), with RuntimeError: no memory' in r.markdown() and 'cw-VR' not in [label(o) for o in r.test['small']]
    r.write()
    t = pd.read_csv(tmp_path/'report.csv', keep_default_na=False).set_index(['condition','method'])
    assert t.failed['small','cw-VR'] == '2' or t.failed['small','cw-VR'] == 2
    assert set(t.failed.astype(int).drop(('small','cw-VR'))) == {0} and set(t.first_error['large']) == {''}

def test_one_method_that_always_failed(tmp_path):
    rs = [failing(r) if label(r) == 'ITRA-c' and r['stage'] == 'test' else r for r in records()]
    r = Report(write(tmp_path, rs)); r.write()
    t,md = r.tables['small'],r.markdown()
    assert (t.seeds['ITRA-c'],t.failed['ITRA-c'],t.failed['cw-VR']) == (0,5,0) and list(equal_cost(r.suite.costs('small'), r.test['small']).index) == ['Phantom k=3']
    row = dict(zip(tables(md)['small'][0], next(o for o in tables(md)['small'] if o[0] == 'ITRA-c')))
    assert row.pop('failed') == '5 of 5' and row.pop('arguments') == 'weight=0.6' and set(row.values()) == {'','ITRA-c'}
    assert md.count('Not compared at equal cost, because no run of it or of its baseline ended well: ITRA-c.') == 2
    paper = tables(md)["small / The paper's figures"]
    assert [r[1] == 'failed' for r in paper[2:]] == [r[0] == 'ITRA-c' for r in paper[2:]]
    csv = pd.read_csv(tmp_path/'report.csv').set_index(['condition','method'])
    assert (csv.failed['small','ITRA-c'],csv.first_error['large','ITRA-c'],csv.failed['small','baseline']) == (5,'RuntimeError: no memory',0)

@pytest.mark.parametrize('rows', [['baseline'], ['baseline','baseline ×2'], ['ITRA-c'], ['cw-VR','baseline ×2'], ['baseline','cw-VR']], ids=' and '.join)
def test_some_rows_alone(rows, tmp_path):
    "Whatever there is makes a report; a picture of gains where a method and the baseline are there"
    files = Report(write(tmp_path, [r for r in records() if r['stage'] == 'test' and label(r) in rows])).write()
    assert all(f.exists() for f in files) and set(r[0] for r in tables(files[0].read_text(encoding='utf8'))['small'][2:]) == set(rows)
    assert ('gains.png' in [f.name for f in files]) == (rows == ['baseline','cw-VR'])

def test_one_seed_of_each(tmp_path):
    md = Report(write(tmp_path, [r for r in records() if r['seed'] in (0,100)])).markdown()
    assert all(dict(zip(tables(md)['small'][0], row))['p (Holm)'] == '' for row in tables(md)['small'][2:]) and ', p ' not in '\n'.join(map(str, tables(md)['small / At equal cost']))
    assert all(f.exists() for f in Report(tmp_path).write())

def test_a_suite_without_conditions(tmp_path):
    spec = {k: v for k,v in SPEC.items() if k != 'conditions'}
    s = Suite(spec, 'made')
    rs = [result(r, 10. - .1*r['seed'] - OFF[label(r)]) for r in s.test_runs({None: .1}, {(None,'cw-VR'): dict(weight=1)})]
    files = Report(write(tmp_path, rs, spec)).write()
    assert [f.name for f in files] == ['report.md','report.csv','gains.png','errors.png'] and 'None' not in files[0].read_text(encoding='utf8')

def test_only_choices_so_far(tmp_path):
    files = Report(write(tmp_path, [r for r in records() if r['stage'] == 'lr'])).write()
    assert len(files) == 2 and 'small, large' in files[0].read_text(encoding='utf8').split('## Not run')[1]

def test_old_records_make_a_report(tmp_path):
    "Of a version that did not record ece, brier and memory"
    rs = [{k: v for k,v in r.items() if k not in ('ece','brier','memory_mb','images_s')} for r in records()]
    head = tables(Report(write(tmp_path, rs)).markdown())['small'][0]
    assert 'ECE %' not in head and 'memory' not in head and all(f.exists() for f in Report(tmp_path).write())

def test_a_diverged_run_in_a_report(tmp_path):
    rs = records()
    i = next(i for i,r in enumerate(rs) if label(r) == 'ITRA-c' and r['condition'] == 'small')
    rs[i] = {**rs[i], 'error': 90., 'nll': math.nan}
    r = Report(write(tmp_path, rs)); r.write()
    e = errors(rs, 'small', 'ITRA-c')
    assert 90. in e and dict(zip(*[tables(r.markdown())['small'][k] for k in (0,5)]))['error %'] == f'{np.mean(e):.2f} ± {np.std(e, ddof=1):.2f}'

def test_a_run_done_again_counts_once(tmp_path):
    rs = records()
    i = next(i for i,r in enumerate(rs) if label(r) == 'cw-VR' and r['stage'] == 'test')
    r = Report(write(tmp_path, [failing(rs[i]), *rs, {**rs[i], 'error': 1.}]))
    assert len(r.records) == len(rs) and 1. in [o['error'] for o in r.test['small'] if label(o) == 'cw-VR'] and 'Failed' not in r.markdown()

@pytest.mark.parametrize('content', [None, '', '{"cut'], ids=['no file','empty','broken'])
def test_no_records(content, tmp_path):
    if content is not None: (tmp_path/'records.jsonl').write_text(content)
    with pytest.raises(ValueError, match='no records.*latentreg bench') as e: Report(tmp_path)
    assert str(tmp_path) in str(e.value)

def test_a_report_of_a_suite_that_is_not_beside_its_records(tmp_path):
    "The package's own suite is found by its name; of another it is said what is missing"
    s = Suite.load('digits')
    r = result(s.test_runs({c: .01 for c in s.conditions}, {})[0], 5.)
    assert Report(write(tmp_path, [r], None)).suite.title == s.title
    for other in ({**r, 'suite': 'mine'}, {k: v for k,v in r.items() if k != 'suite'}):
        with pytest.raises(ValueError, match='suite'): Report(write(tmp_path, [other], None))

def test_records_of_the_package_make_reports(tmp_path):
    "Each suite of the package, with a record for every run of two seeds"
    from latentreg_fastai.bench import suite_files
    for name in suite_files():
        s = Suite.load(name).only(seeds=2)
        runs = s.test_runs({c: .01 for c in s.conditions}, {})
        folder = tmp_path/name; folder.mkdir()
        r = Report(write(folder, [result(r, 10.+r['seed']+.01*i) for i,r in enumerate(runs)], s.spec))
        md = r.markdown()
        assert len(tables(md)) >= len(s.conditions) and list(r.tables) == list(s.conditions)
        for c in s.conditions: assert set(r.tables[c].index) == set(s.conditions[c]['rows'])

def timed(method, seed, error, nll=1., step_ms=2., **args): return dict(method=method, seed=seed, error=error, nll=nll, step_ms=step_ms, args=args)

def test_summary_is_paired():
    t = summary([timed('baseline', 0, 10.), timed('baseline', 1, 20.), timed('VR', 1, 18., step_ms=3., weight=1.), timed('VR', 0, 11., nll=.5, step_ms=2.2, weight=1.)])
    assert (t.error['VR'],t.gain['VR'],t.wins['VR'],t.nll_wins['VR']) == (14.5,.5,1,1)
    close([t.gain_sd['VR'],t.time['VR']], [np.std([-1,2], ddof=1),1.3])
    assert 'weight=1' in show_table(t)['arguments']['VR'] and '1 of 2' in show_table(t)['wins']['VR']

def test_rows_of_one_method():
    "A label tells apart what a method's name does not"
    t = summary([timed('baseline', 0, 10.), {**timed('Phantom', 0, 9., k=3), 'label': 'Phantom k=3'}, {**timed('Phantom', 0, 8., k=2), 'label': 'Phantom k=2'}, timed('VR', 0, 7., weight=1.)])
    assert list(t.index) == ['baseline','VR','Phantom k=3','Phantom k=2'] and t.gain['Phantom k=2'] == 2.
    text = winners(t).splitlines()
    assert text[0].index('VR') < text[0].index('Phantom k=2') < text[0].index('Phantom k=3') and text[1] == 'not: none'

# A report is never lost

@pytest.mark.parametrize('title,condition', [('$x_$','US$ and A$'), ('a $\\frac{$ b','$x_$'), ('C$','_a'), (2024,'n=1'), ('a | b','a | b')])
def test_any_title_and_any_name(title, condition, tmp_path):
    spec = {**SPEC, 'title': title, 'conditions': {condition: SPEC['conditions']['small'], 'large': SPEC['conditions']['large']}, 'rows': {'$y_$': dict(SPEC['rows']['cw-VR'], of='cw-VR'), **SPEC['rows']}}
    def renamed(r): return {**r, 'condition': condition if r['condition'] == 'small' else r['condition'], **(dict(label='$y_$') if r['method'] == 'cw-VR' else {})}
    files = Report(write(tmp_path, [renamed(r) for r in records()], spec)).write()
    assert [f.name for f in files] == ['report.md','report.csv','gains.png','errors-1.png','errors-2.png'] and all(f.stat().st_size for f in files)
    md = files[0].read_text(encoding='utf8')
    assert md.startswith(f'# {title}\n') and f'## {condition}\n' in md
    files = Report(write(tmp_path, [{k: v for k,v in r.items() if k != 'condition'} for r in records() if r['condition'] == 'small'], {k: v for k,v in {**SPEC, 'title': title}.items() if k != 'conditions'})).write()
    assert [f.name for f in files] == ['report.md','report.csv','gains.png','errors.png']

def test_texts_of_an_old_suite(tmp_path):
    md = Report(write(tmp_path, records(), {**SPEC, 'title': ['one','two'], 'about': ['three','four']})).markdown()
    assert md.startswith('# one two\n\nthree four\n')

def test_rows_that_are_named_by_numbers(tmp_path):
    "As old records have them"
    spec = {**SPEC, 'rows': {1: dict(SPEC['rows']['cw-VR'], of='cw-VR'), **{k: v for k,v in SPEC['rows'].items() if k != 'cw-VR'}}}
    r = Report(write(tmp_path, [{**r, 'label': 1} if r['method'] == 'cw-VR' else r for r in records()], spec))
    assert '1' in r.tables['small'].index and len(r.write()) == 5

def test_a_picture_that_cannot_be_drawn_is_told(tmp_path, monkeypatch):
    import latentreg_fastai.bench.report as module
    def fails(*a, **k): plt.figure(); raise ValueError('no ink')
    monkeypatch.setattr(module, 'plot_gains', fails)
    with pytest.warns(UserWarning, match='gains.png could not be drawn.*no ink'): files = Report(write(tmp_path, records())).write()
    assert [f.name for f in files] == ['report.md','report.csv','errors-1.png','errors-2.png'] and 'gains.png' not in files[0].read_text(encoding='utf8') and not plt.get_fignums()
    (tmp_path/'errors-1.png').unlink(); (tmp_path/'errors-1.png').mkdir()
    with pytest.raises(OSError): Report(tmp_path).write()                               # a disk that cannot be written is an error
    assert (tmp_path/'report.md').exists()

@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('keys', [('error',), ('nll',), ('error','nll','ece','brier','error_last5','nll_last5')])
def test_rows_of_nan(value, keys, tmp_path):
    rs = [{**r, **dict.fromkeys(keys, value)} if label(r) == 'ITRA-c' else r for r in records()]
    r = Report(write(tmp_path, rs))
    assert len(r.write()) == 5 and 'ITRA-c' in winners(r.tables['small'])
    rs = [{**r, **dict.fromkeys(keys, value)} for r in records()]
    assert len(Report(write(tmp_path, rs)).write()) == 5

def test_records_without_some_figures(tmp_path):
    "As a task of one's own gives them, beside a paper's"
    gone = ('nll','ece','brier','error_last5','nll_last5','memory_mb')
    r = Report(write(tmp_path, [{k: v for k,v in r.items() if k not in gone} for r in records()]))
    assert len(r.write()) == 5
    assert 'some paper, Table 2' not in r.markdown() and 'another paper' in r.markdown()

# Figures of any size

def _of_size(k, higher=False, **kwargs):
    "Records of a baseline and two methods whose figures are about 0.04·k; those of the second are equally better in every seed"
    base = [.0412,.0425,.0433,.0419,.0441]
    rows = dict(baseline=base, some=[b - d for b,d in zip(base, (.0011,.0004,.0009,.0002,.0013))], equal=[b - .001 for b in base])
    more = dict(figure='a_loss', **(dict(higher=True) if higher else {}), **kwargs)
    return [dict(method=m, args={}, seed=s, error=k*v, step_ms=1., **more) for m,vs in rows.items() for s,v in enumerate(vs)]

@pytest.mark.parametrize('k,shown,gain', [(1,'0.0426 ± 0.0011','0.0008'), (1e-3,'0.000043','0.000001'), (20,'0.852','0.016'), (1000,'42.60','0.78')])
def test_figures_show_three_digits(k, shown, gain):
    t = summary(_of_size(k))
    s = show_table(t)
    assert s.loc['baseline','a_loss'].startswith(shown) and s.loc['some','gain'].startswith(gain) and gain in winners(t)
    assert plot_table(_of_size(k))[0].texts[0].get_text() == f'{k*.0426:.{decimals_of(t)}f}'

def test_errors_in_percent_have_two_decimals():
    rs = [{k: v for k,v in r.items() if k != 'figure'} for r in _of_size(1)]
    assert show_table(summary(rs)).loc['baseline','error %'] == '0.04 ± 0.00'

def test_equal_differences_have_no_interval_anywhere(tmp_path):
    t = summary(_of_size(1))
    assert t.p['equal'] == .0625 and show_table(t).loc['equal','95% interval'] == '' and show_table(t).loc['some','95% interval'] != ''
    e = equal_cost({'equal': 2}, [*_of_size(1), *({**r, 'label': 'baseline ×2', 'error': r['error']+.002} for r in _of_size(1) if r['method'] == 'baseline')])
    assert math.isnan(e.low_cost['equal']) and 'nan' not in report_module._equal_text(e, 4).to_string()
    plot_gains({'a': t})[0].figure.savefig(tmp_path/'gains.png')
    assert (tmp_path/'gains.png').stat().st_size > 1000
