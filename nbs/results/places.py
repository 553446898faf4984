"""What a strong penalty does behind the normalisation and dropout of a head, and before them: `python nbs/results/places.py`, some five minutes on two cores"""
import json, warnings
from pathlib import Path
warnings.simplefilter('ignore')
from fastai.vision.all import *
from fastai.tabular.all import *
from sklearn.datasets import load_digits
from latentreg_fastai.all import *

D = load_digits()

def tabular():
    df = pd.DataFrame(D.data, columns=[f'x{i}' for i in range(64)]).assign(y=D.target.astype(str))
    dls = TabularDataLoaders.from_df(df, procs=[Normalize], cont_names=list(df.columns[:-1]), y_names='y', y_block=CategoryBlock(),
                                     valid_idx=range(1200,1797), bs=64, device='cpu')
    return tabular_learner(dls, layers=[100,50], metrics=error_rate)

def vision():
    x,y = F.interpolate(tensor(D.images).float()[:,None]/16, size=32).repeat(1,3,1,1),tensor(D.target)
    dls = tensor_dls((x[:1200],y[:1200]), (x[1200:],y[1200:]), bs=64, device='cpu', vocab=range(10))
    return vision_learner(dls, resnet18, pretrained=False, normalize=False, n_out=10, loss_func=CrossEntropyLossFlat(), metrics=error_rate)

# a learner, the input of its last layer, the place before normalisation and dropout, epochs
LEARNERS = dict(tabular_learner=(tabular,'layers.2.0:input','layers.1.2:input',5), vision_learner=(vision,'1.8:input','1.6:input',3))

if __name__ == '__main__':
    rows = []
    for (name,(make,behind,before,epochs)),place,seed in itertools.product(LEARNERS.items(), ('none','behind','before'), range(3)):
        set_seed(seed)
        learn = make()
        layer = dict(behind=behind, before=None).get(place)   # by default it is before them
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs, 5e-3, cbs=[] if place == 'none' else VarianceRegularizer(100., classwise=False, layer=layer))
            z,error = LatentInterpretation.from_learner(learn, before).features,float(learn.validate()[1])
        rows.append(dict(learner=name, penalty=place, seed=seed, hidden_variance=z.var(0).mean().item(), error=100*error))
        print(rows[-1], flush=True)
    Path(__file__).with_suffix('.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
