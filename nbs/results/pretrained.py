"""What statistics of batch normalisation do for a pretrained body, and where the course of the experiment `finetune` ends: `python
nbs/results/pretrained.py`, some twenty minutes on two cores. All images are of CIFAR-10's training set: 1,000 to train on and 1,000 that judge"""
import json, warnings
from pathlib import Path
warnings.simplefilter('ignore')
from fastai.vision.all import *
from fastai.callback.channelslast import ChannelsLast
from latentreg_fastai.all import *
from latentreg_fastai.bench import read_experiment

STUDY = read_experiment('finetune')
drawn = STUDY['learner'].__globals__['drawn']

def learner(seed):
    files = drawn('train', 2000, 1000+seed).shuffle()    # none of the study's seeds
    block = DataBlock((ImageBlock,CategoryBlock), get_items=lambda _: files, get_y=parent_label, splitter=IndexSplitter(range(1000, 2000)),
                      item_tfms=Resize(96), batch_tfms=aug_transforms())
    return vision_learner(block.dataloaders('.', bs=16, num_workers=0), efficientnet_lite0, metrics=error_rate)

def head(learn, cbs=()):
    "A new head on the frozen body"
    learn.freeze()
    learn.fit_one_cycle(3, 2e-3, cbs=[*cbs, ChannelsLast()])

WAYS = {'head, statistics of the batches': head, 'head, statistics of the pretraining': lambda learn: head(learn, [PretrainedStatistics()]),
        'fine_tune': lambda learn: STUDY['fit'](learn, [])}

if __name__ == '__main__':
    rows = []
    for seed,(way,fit) in itertools.product(range(2), WAYS.items()):
        set_seed(seed)
        learn = learner(seed)
        with learn.no_bar(), learn.no_logging():
            fit(learn)
            loss,error = map(float, learn.validate())
        rows.append(dict(way=way, seed=seed, error=100*error, nll=loss))
        print(rows[-1], flush=True)
    Path(__file__).with_suffix('.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
