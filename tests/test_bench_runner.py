"The runner: killed, doubled, spread over processes and a cluster; runs that fail."
import pytest
import hashlib, signal, threading
from common import *

from common_bench import *

def test_nothing_is_done_twice(tmp_path, monkeypatch):
    f,calls = tmp_path/'r.jsonl',[]
    one = run_module.one_run
    monkeypatch.setattr(run_module, 'one_run', lambda r: calls.append(r['seed']) or one(r))
    run_all([RUN], f); run_all([{**RUN, 'seed': 2}, RUN], f)
    assert calls == [0,2]

def test_stopped_and_gone_on(tmp_path, monkeypatch):
    "Ctrl-C in the third of four runs: two records, and the other two after a restart"
    f,n,one = tmp_path/'r.jsonl',[],run_module.one_run
    def sometimes(r):
        n.append(r)
        if len(n) == 3: raise KeyboardInterrupt
        return one(r)
    monkeypatch.setattr(run_module, 'one_run', sometimes)
    runs = [{**RUN, 'seed': s} for s in range(4)]
    with pytest.raises(KeyboardInterrupt): run_all(runs, f)
    assert [r['seed'] for r in read_records(f)] == [0,1]
    assert [r['seed'] for r in run_all(runs, f)] == [0,1,2,3] and len(n) == 5

# Killed and doubled

def test_killed_in_every_stage(tmp_path, start):
    "SIGKILL in the middle of runs of all three stages loses and doubles nothing"
    rng,out = random.Random(0),tmp_path/'out'
    file = suite_file(tmp_path, lrs=[.003,.01], tune=dict(n_valid=100, seeds=[100,101]), seeds=10, rows={'VR': {}, 'cw-VR': dict(grid=dict(weight=[.1,1.,10.]))})
    records = out/'records.jsonl'                        # 4 for the rate, 6 for the strength, 30 of the comparison
    for goal in (1,3,6,9,14):
        p = start('bench', file, '--out', out)
        goal = max(goal, lines(records) + 1)
        wait(lambda: lines(records) >= goal, p)
        time.sleep(rng.random()*read_records(records)[-1]['seconds'])
        assert kill(p) == -signal.SIGKILL                # it was still at work
    p = start('bench', file, '--out', out)
    assert p.wait(180) == 0, p.said.read_text()
    recs = whole_lines(records).values()
    assert len(recs) == 40 and not any(map(failed, recs))
    assert [sum(r['stage'] == s for r in recs) for s in ('lr','strength','test')] == [4,6,30]
    assert 'cw-VR' in p.said.read_text() and len(pd.read_csv(out/'report.csv')) == 3

def two_runners(tmp_path, start, seeds):
    "One that was halted in a run, another at work; the claim on that run, the number of records then, their file"
    file,out = suite_file(tmp_path, seeds=seeds),tmp_path/'out'
    records = out/'records.jsonl'
    a = start('bench', file, '--out', out)
    claim = halt_in_a_run(a, records)
    return a,start('bench', file, '--out', out),claim,lines(records),records

@linux
def test_two_runners_at_once(tmp_path, start):
    "Both are in the middle of runs at the same time; no run is done twice, and both tell the whole result"
    a,b,first,before,records = two_runners(tmp_path, start, seeds=7)
    wait(lambda: claims(b), b)
    assert first not in claims(b)
    a.send_signal(signal.SIGCONT)
    assert before < 8 and (a.wait(180),b.wait(180)) == (0,0), a.said.read_text() + b.said.read_text()
    assert len(whole_lines(records)) == 14 == lines(records)
    for p in (a,b): assert all(w in p.said.read_text() for w in ('error %','baseline','cw-VR','report.md'))
    assert not (records.parent/'claims').exists()

@linux
def test_a_dead_runners_claim_is_taken_over(tmp_path, start):
    "The other runner does all but the run that is under way, waits for that, and does it when its owner is dead"
    a,b,claim,_,records = two_runners(tmp_path, start, seeds=4)
    wait(lambda: lines(records) == 7, b)
    time.sleep(1.5)                                      # longer than it sleeps between looks
    assert b.poll() is None and lines(records) == 7 and claim not in {hashlib.sha1(k.encode()).hexdigest() for k in whole_lines(records)}
    kill(a)
    assert b.wait(60) == 0, b.said.read_text()
    assert claim in {hashlib.sha1(k.encode()).hexdigest() for k in whole_lines(records)} and lines(records) == 8

# Processes and a cluster

def test_jobs_change_no_figure(tmp_path):
    "Two processes give what one gives, for good and failed runs"
    file = suite_file(tmp_path, rows={'cw-VR': dict(args=dict(weight=1.)), 'VR': dict(args=dict(weight=-1.))})
    one,two = tmp_path/'one'/'records.jsonl',tmp_path/'two'/'records.jsonl'
    done = [latentreg('bench', file, '--out', f.parent, '--jobs', n) for n,f in enumerate((one,two), 1)]
    assert [d.status for d in done] == [1,1], done       # a row fails
    assert figures(whole_lines(one).values()) == figures(whole_lines(two).values()) and lines(one) == 6

def test_threads_are_no_more_than_asked_for(monkeypatch):
    "With many cores and OMP_NUM_THREADS=1 a process of several has one thread too, or its figures would be others"
    before = torch.get_num_threads()
    monkeypatch.setattr(os, 'cpu_count', lambda: 16)
    torch.set_num_threads(1)
    try: assert runner.recorded_run(RUN, jobs=2)['threads'] == 1
    finally: torch.set_num_threads(before)

@linux
def test_a_process_that_dies(tmp_path):
    "As when the system is out of memory: the error says what to do, and what was done stays"
    file,runs,dead = tmp_path/'r.jsonl',[{**RUN, 'seed': s} for s in range(12)],[]
    def shoot():
        wait(lambda: lines(file))
        for d in Path('/proc').glob('[0-9]*'):
            try: ppid,cmd = int((d/'stat').read_text().rpartition(')')[2].split()[1]),(d/'cmdline').read_text()
            except OSError: continue
            if ppid == os.getpid() and 'popen_loky' in cmd: os.kill(int(d.name), signal.SIGKILL); dead.append(d.name); return
    t = threading.Thread(target=shoot, daemon=True)
    t.start()
    with pytest.raises(RuntimeError, match='ended by the system.*records so far are kept.*fewer jobs'): run_all(runs, file, jobs=2)
    t.join(60)
    kept = file.read_bytes()
    assert dead and 0 < len(whole_lines(file)) < 12
    assert [r['seed'] for r in run_all(runs, file)] == list(range(12)) and file.read_bytes().startswith(kept) and len(whole_lines(file)) == 12

def test_dask_changes_no_figure(tmp_path, cluster):
    "The workers of a cluster give what this process gives, and a failed run does not stop the others"
    runs = [{**RUN, 'seed': s} for s in range(3)] + [BAD]
    here,there = run_all(runs, tmp_path/'here.jsonl'),run_all(runs, tmp_path/'there.jsonl', scheduler=cluster)
    assert figures(here) == figures(there) and [r['seed'] for r in there] == [0,1,2,0] and [failed(r) for r in there] == [False]*3 + [True]
    assert len(whole_lines(tmp_path/'there.jsonl')) == 4

def test_a_failed_run_is_recorded(tmp_path, monkeypatch):
    "It does not stop the others, is not done again by itself, and `retry` does it and nothing else"
    file,did,one = tmp_path/'r.jsonl',[],run_module.one_run
    monkeypatch.setattr(run_module, 'one_run', lambda r: did.append(r) or one(r))
    runs = [RUN, BAD, {**RUN, 'seed': 1}]
    recs = run_all(runs, file)
    assert [failed(r) for r in recs] == [False,True,False] and did == runs
    assert 'weight' in recs[1]['failed'] and 'VarianceRegularizer' in recs[1]['failed'] and recs[1]['traceback'].startswith('Traceback') and 'error' not in recs[1]
    assert 'File "latentreg_fastai/bench/run.py"' in recs[1]['traceback'] and 'File "/' not in recs[1]['traceback']   # records are shared: nothing of the machine
    assert run_all(runs, file) == recs and len(did) == 3
    again = run_all(runs, file, retry=True)
    assert did[3:] == [BAD] and figures(again) == figures(recs) and again[0] == recs[0] and len(whole_lines(file)) == 3
    run_all([RUN], file, retry=True)                     # the failed run was not asked for
    assert len(did) == 4 and len(whole_lines(file)) == 3
