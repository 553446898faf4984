"""Train and measure the networks that `tutorial.interpretation` compares

    python nbs/results/interpretation.py

writes the figures to interpretation.jsonl and the weights of the first seed to interpretation.pth (float16). It takes about half an
hour on two cores. An interrupted run continues where it stopped; delete the files to repeat everything. Methods, rates and strengths
are read from the records of the suites mnist-5k and pairs-5k."""
from latentreg_fastai.interpret import LatentInterpretation
from latentreg_fastai.robustness import robustness
from latentreg_fastai.bench import read_records, trained, versions, write_record
from fastai.vision.all import *

here = Path(__file__).parent
file,weights = here/'interpretation.jsonl',here/'interpretation.pth'
methods = {'baseline': ('mnist-5k','baseline'), 'input mixup': ('mnist-5k','MixUp'), 'manifold mixup': ('mnist-5k','ManifoldMixup'),
           'VR': ('mnist-5k','VR'), 'cw-VR': ('mnist-5k','cw-VR'), 'CR': ('mnist-5k','CR'), 'cw-CR': ('mnist-5k','cw-CR'),
           'ITRA-c': ('pairs-5k','ITRA-c'), 'phantom': ('pairs-5k','Phantom k=2')}
kept = 'baseline','manifold mixup','cw-VR','CR','ITRA-c','phantom'      # their weights are kept

def run_of(name, seed):
    "The run of a suite, and the error in its record"
    suite,label = methods[name]
    test = [r for r in read_records(here/suite/'records.jsonl') if r['stage'] == 'test' and r['seed'] == seed]
    rec = next(r for r in test if r.get('label', r['method']) == label)
    return {k: rec[k] for k in ('data','data_args','net','net_args','method','args','seed','epochs','lr')},rec['error']

def measure(name, seed):
    run,error = run_of(name, seed)
    learn = trained(run)
    learn.remove_cb(ProgressCallback)
    learn.dls.train.rng.seed(seed)
    interp = LatentInterpretation.from_learner(learn)
    table = robustness(learn, n=1000, seed=0)
    rec = dict(method=name, seed=seed, run=run, error_in_suite=error, characteristics=interp.characteristics().iloc[:,0].to_dict(),
               calibration=interp.calibration().iloc[:,0].to_dict(), knn={str(k): v for k,v in interp.knn().error.items()},
               interpolation=interp.interpolation(n=1000).to_dict(), robustness=table.to_dict('list'), versions=versions())
    return learn,rec

if __name__ == '__main__':
    torch.set_num_threads(1)
    done = {(r['method'],r['seed']) for r in read_records(file)}
    for seed,name in itertools.product(range(5), methods):
        if (name,seed) in done: continue
        learn,rec = measure(name, seed)
        if seed == 0 and name in kept:
            state = torch.load(weights) if weights.exists() else {}
            torch.save({**state, name: {k: v.half() for k,v in learn.model.state_dict().items()}}, weights)
        write_record(file, rec)
        print(seed, name, round(100*rec['calibration']['error'], 2), rec['error_in_suite'], flush=True)
