"Distributed training on two processes of one machine, over gloo. `distributed_run.py` trains there, all in one launch; what the ranks saw is judged here."
import os, socket, subprocess, sys
import pytest
from collections import Counter
from common import *

pytest.importorskip('accelerate')
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()): pytest.skip('needs gloo', allow_module_level=True)
from distributed_run import BOTH, EXACT, PAIRED, RANDOM, SIZES, plain_net

ITEMS,OWN = ['Phantom','ITRA-c'],['Phantom k=3']
TRAINED = [*(f'fit {n}' for n in [*OF_A_NET, *BOTH]), *(f'seeds {n}' for n in RANDOM), *(f'items {n}' for n in ITEMS), *(f'own {n}' for n in OWN), *(f'odd {n}' for n in PAIRED)]

@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    "A function of the name of a check: the results of both ranks"
    out,here = tmp_path_factory.mktemp('ranks'),Path(__file__).resolve().parent
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': os.pathsep.join([str(here.parent), os.environ.get('PYTHONPATH', '')])}
    log = out/'log.txt'
    with open(log, 'w') as f:
        subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', str(port), here/'distributed_run.py', out],
                       env=env, stdout=f, stderr=subprocess.STDOUT, timeout=900)
    def get(check):
        files = [out/f'{check}.{r}' for r in range(2)]
        assert all(f.exists() for f in files), f'{check} did not run: {log.read_text()[-3000:]}'
        res = [torch.load(f) for f in files]
        for r,o in enumerate(res): assert 'error' not in o, f"rank {r}: {o['error']}"
        return res
    return get

# Equal weights, nothing left

@pytest.mark.parametrize('check', TRAINED)
def test_both_ranks_end_with_the_same_weights(ranks, check):
    a,b = (r['weights'] for r in ranks(check))
    assert same(a, b) and all(t.isfinite().all() for t in a.values())

@pytest.mark.parametrize('name', OF_A_NET)
def test_it_changes_training(ranks, name):
    mine = ranks(f'fit {name}')[0]['weights']
    assert same(mine, ranks('fit none')[0]['weights']) == (name in ONLY_WATCH)
    assert not any(same(mine, ranks(f'fit {n}')[0]['weights']) for n in ('cw-VR','VR') if n != name)

@pytest.mark.parametrize('check', TRAINED)
def test_nothing_is_left_after_a_fit(ranks, check):
    for r in ranks(check): assert r['left'] == dict(wrapped=False, hooks=0, callbacks=[], loaders=[True,True])

@pytest.mark.parametrize('name', [n for n in PENALTIES if n in OF_A_NET and not n.startswith('SemiSupervised')])   # whose consistency is each rank's own mean, as the loss is
def test_both_ranks_record_the_same_terms(ranks, name):
    a,b = (r['terms'] for r in ranks(f'fit {name}'))
    (term,steps), = a.items()
    assert len(steps) == 6 and list(b) == [term]
    close([v for v in steps if not math.isnan(v)], [v for v in b[term] if not math.isnan(v)], 1e-7)
    assert [math.isnan(v) for v in steps] == [math.isnan(v) for v in b[term]]

# Which samples the ranks hold

def batches(results, n, bs, drop_last):
    "The batches of both ranks, side by side, which hold every sample once an epoch, up to fastai's padding"
    a,b = (r['rows'] for r in results)
    padded = n + n%2
    per_rank = padded//2//bs*bs if drop_last else padded//2
    assert [(s['epoch'],s['i'],s['n_iter'],len(s['main'])) for s in a] == [(s['epoch'],s['i'],s['n_iter'],len(s['main'])) for s in b]
    for r in (a,b):
        for s in r: assert s['y'] == [m%3 for m in s['main']] and 0 < len(s['main']) <= bs
    for epoch in range(2):
        mine = [[m for s in r if s['epoch'] == epoch for m in s['main']] for r in (a,b)]
        assert [len(m) for m in mine] == [per_rank]*2
        seen = Counter(mine[0] + mine[1])
        assert len(seen) >= 2*per_rank - n%2
        if not drop_last: assert seen.keys() == set(range(n))
    return list(zip(a, b))

def homogeneous(steps, n, k):
    "Every main sample comes with k−1 of its class, no one twice where the class has `k`"
    size = Counter(i%3 for i in range(n))
    for s in (s for both in steps for s in both):
        assert s['n'] == len(s['main']) and len(s['more']) == (k-1)*len(s['main']) and s['y_more'] == [m%3 for m in s['more']]
        for i,m in enumerate(s['main']):
            cluster = [m, *s['more'][i*(k-1):(i+1)*(k-1)]]
            assert {c%3 for c in cluster} == {m%3}
            assert len(set(cluster)) == k or size[m%3] < k
            assert m not in cluster[1:] or size[m%3] == 1

def paired(steps, n, matched=False, warmup=0.):
    "Every batch above the warm-up has a second one, on both ranks, and none below"
    for s in (s for both in steps for s in both):
        if (s['epoch'] + s['i']/s['n_iter'])/2 < warmup: assert s['more'] is None and s['n'] == 0
        else:
            assert s['n'] == len(s['main']) == len(s['more']) and s['y_more'] == [m%3 for m in s['more']]
            if matched: assert s['y_more'] == s['y']

def companions(name, steps, n):
    if name.startswith('Phantom'): return homogeneous(steps, n, 3 if '=3' in name else 2)
    paired(steps, n, 'matched' in name or 'warm-up' in name, .2 if 'warm-up' in name else 0.)

@pytest.mark.parametrize('size', SIZES, ids=lambda s: f"{s[0]}-by-{s[1]}{'-dropping' if s[2] else ''}")
@pytest.mark.parametrize('name', PAIRED)
def test_no_cluster_and_no_pair_is_cut(ranks, name, size):
    n,bs,drop_last = size
    companions(name, batches(ranks(f'rows {name} {n}'), n, bs, drop_last), n)

@pytest.mark.parametrize('check,n,bs,drop_last', [*((f'fit {n}',48,8,True) for n in ADD_ROWS if n in PAIRED), *((f'seeds {n}',48,8,True) for n in RANDOM if n in PAIRED),
                                                  *((f'items {n}',26,4,False) for n in ITEMS), *((f'own {n}',26,4,False) for n in OWN), *((f'odd {n}',27,4,False) for n in PAIRED)])
def test_no_cluster_and_no_pair_is_cut_in_a_whole_fit(ranks, check, n, bs, drop_last):
    companions(check.split(' ', 1)[1], batches(ranks(check), n, bs, drop_last), n)

@pytest.mark.parametrize('name', [n for n in OF_A_NET if n not in ADD_ROWS])
def test_others_see_the_batches_as_they_are(ranks, name):
    for s in (s for both in batches(ranks(f'fit {name}'), 48, 8, True) for s in both): assert s['more'] is None

@pytest.mark.parametrize('name', ['ITRA-c','ITRA separate'])
@pytest.mark.parametrize('n,bs', [(26,4), (25,4), (27,4), (7,8)])
def test_second_batches_hold_every_sample_too(ranks, name, n, bs):
    steps = batches(ranks(f'rows {name} {n}'), n, bs, False)
    for epoch in range(2): assert {m for both in steps for s in both if s['epoch'] == epoch for m in s['more']} == set(range(n))

@pytest.mark.parametrize('n,bs', [(n,bs) for n,bs,_ in SIZES if n > bs])
def test_a_warm_up_ends_within_an_epoch(ranks, n, bs):
    a,b = ([s['more'] is not None for s in r['rows']] for r in ranks(f'rows ITRA-c warm-up {n}'))
    assert a == b == sorted(a) and 0 < sum(a) < len(a) and a[0] is False

# Contract 9: statistics are of the global batch, with its gradients. The network has neither dropout nor batch normalisation, and doubles.

def on_one_process(name, results, i):
    "The term, and what is differentiated, of step `i` on one process that has the batches of both ranks"
    now = [r[i] for r in results]
    model = plain_net()
    model.load_state_dict(now[0]['weights'])
    body,head = model[:-1],model[-1]
    x,y = (torch.cat([s[k] for s in now]) for k in 'xy')
    z = body(x)
    if   name == 'cw-VR':        term = classwise_variance_penalty(z, y, 3)
    elif name == 'VR':           term = variance_penalty(z)
    elif name == 'cw-CR':        term = classwise_covariance_penalty(z, y, 3)
    elif name == 'CR':           term = covariance_penalty(z)
    elif name == 'ActivationL1': term = z.abs().mean()
    elif name == 'WeightL1':
        term = sum(p.abs().sum() for p in model.parameters() if p.ndim > 1)
        return model,term,.1*term
    elif name == 'CenterLoss':
        centers = results[0][i-1]['centers'] if i else torch.zeros(3, 5, dtype=torch.float64)
        term = (z - centers[y]).square().sum(1).mean()/2
    elif name.startswith('Phantom'):
        members = body(torch.cat([s['x2'] for s in now])).view(len(y), -1, 5)
        loss,term = (F.cross_entropy(head(e), y) for e in (z, torch.cat([z[:,None], members], 1).mean(1)))
        share = now[0]['share']
        return model,term,share*loss + (1-share)*term
    else:
        n = len(y)//2                                     # on a rank
        if 'split' in name:
            halves = lambda t: (torch.cat([t[:n//2],t[n:n+n//2]]), torch.cat([t[n//2:n],t[n+n//2:]]))
            (z1,z2),(y1,y2) = halves(z),halves(y)
        elif 'queue' in name:
            z1,y1,earlier = z,y,[s for r in results for s in r[max(0, i-2):i]]
            def features(s):
                old = plain_net()
                old.load_state_dict(s['weights'])
                return old[:-1](s['x']).detach()
            if not earlier: return model,z.sum()*0,z.sum()*0
            z2,y2 = torch.cat([features(s) for s in earlier]),torch.cat([s['y'] for s in earlier])
        else: z1,y1,z2,y2 = z,y,body(torch.cat([s['x2'] for s in now])),torch.cat([s['y2'] for s in now])
        term = classwise_mmd(z1, y1, z2, y2, 3) if '-c' in name else mmd(z1, z2, squared=name == 'ITRA split')
    return model,term,3*term

@pytest.mark.parametrize('name', EXACT)
def test_statistics_are_of_the_global_batch_with_gradients(ranks, name):
    results = ranks(f'exact {name}')
    assert len(results[0]) == len(results[1]) == 6
    for i in range(6):
        model,term,total = on_one_process(name, results, i)
        grads = torch.autograd.grad(total, list(model.parameters()), materialize_grads=True) if total.requires_grad else []
        terms = [r[i]['term'] for r in results]
        if name.startswith('Phantom'): terms = [sum(terms)/2]     # a mean over samples: each rank has its own part
        for t in terms: torch.testing.assert_close(t, term.detach(), rtol=1e-9, atol=1e-12)
        for r in results:
            for mine,g in zip(r[i]['grad'], grads, strict=True): torch.testing.assert_close(mine, g, rtol=1e-8, atol=1e-12)
        assert i == 0 and 'queue' in name or max(g.abs().max() for g in grads) > 1e-4

@pytest.mark.parametrize('name', EXACT)
def test_both_ranks_have_batches_and_weights_of_their_own(ranks, name):
    "What the test above rests on: the batches differ, the weights do not"
    for a,b in zip(*ranks(f'exact {name}')): assert not torch.equal(a['x'], b['x']) and same(a['weights'], b['weights']) and len(a['x']) == 4

def test_centres_follow_the_global_batch(ranks):
    centers,results = torch.zeros(3, 5, dtype=torch.float64),ranks('exact CenterLoss')
    for now in zip(*results):
        model = plain_net()
        model.load_state_dict(now[0]['weights'])
        z,y = model[:-1](torch.cat([s['x'] for s in now])).detach(),torch.cat([s['y'] for s in now])
        for k in range(3): centers[k] -= .5*(centers[k] - z[y == k]).sum(0)/(1 + (y == k).sum())
        for s in now: torch.testing.assert_close(s['centers'], centers, rtol=1e-9, atol=1e-12)
        assert torch.equal(now[0]['centers'], now[1]['centers'])
