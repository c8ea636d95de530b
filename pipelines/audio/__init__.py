"""The audio command line: ``python -m pipelines.audio <command>``."""

from pipelines.cli import DEVICE, MODEL, TRACKING, Command, Domain, import_run

_HERE = "pipelines.audio"

_CLIPS = (
    ("data.root", "folder of clips, label/[group/]clip.wav; WAV, FLAC, OGG, MP3 or AIFF (bundled clips)"),
    ("data.manifest", "CSV with path[,label][,group][,split], paths within data.root or beside the CSV"),
)
_SAMPLE = ("data.sample", "bundled clips: prompts, to predict; arrow, to tell apart (what suits the task)")
_STORES = ("data.stores", "folder in which prepared clips are kept and found again (stores)")

AUDIO = Domain(
    name="audio",
    summary="Models of raw sound: from a folder of clips to an evaluated, tracked model.",
    tasks=("classify", "generate", "spectrogram"),
    experiments=(
        "audio_demo",
        "dialogue",
        "drums",
        "drums_spectrogram",
        "drums_stream",
        "music_8k",
        "music_65k",
        "music_524k",
        "music_1m",
        "prompts",
    ),
    commands=(
        Command(
            word="prepare",
            summary="Turn clips into a store that training reads at random positions.",
            about="Reads each file once, brings it to one rate and one channel, and writes a folder with 16 bits a "
            "sample. Files that cannot be used are kept aside with a reason (rejects.csv). The folder's name holds a "
            "hash of all content, so preparing the same clips again finds it. train and evaluate prepare what they "
            "need by themselves; prepare is for doing it beforehand, or for a machine that only trains.",
            options=(
                *_CLIPS,
                _SAMPLE,
                ("data.rate", "samples a second that clips are brought to (16000)"),
                ("data.min_seconds", "shorter clips are kept aside (0.05)"),
                _STORES,
            ),
            examples=("prepare data.root=clips/", "prepare data.manifest=labels.csv"),
            schema=f"{_HERE}.roots:PrepareRoot",
            run=f"{_HERE}.commands:prepare",
        ),
        Command(
            word="train",
            summary="Train a generator or a classifier of sound.",
            about="task=generate predicts each sample from those before it, task=classify names whole clips from raw "
            "samples, task=spectrogram from log-mel patches. Parts are split by group (speaker, kit, level) where "
            "groups are known. Writes a run folder with the measurements, checkpoints, and the model folder, which is "
            "all that the other commands need. The run is recorded in MLflow. A run that was stopped or killed goes on "
            "with resume=<its folder or MLflow run id>.",
            options=(
                *_CLIPS,
                _SAMPLE,
                ("task", "generate, classify or spectrogram (generate)"),
                ("data.test", "groups held out for evaluate, as in [kit3]; clips where there are no groups (a fifth)"),
                ("data.validation", "groups or clips held out to watch training (a tenth)"),
                ("data.window", "samples that a generator sees at once in training (16384)"),
                ("task.pretrained", "of generate: model folder of a generator to go on from, with its sizes (none)"),
                ("data.max_seconds", "what a classifier sees of a longer clip in training (10)"),
                ("data.level_db", "loudness that each clip is brought to, RMS in dBFS (as recorded)"),
                (
                    "data.augment.speed",
                    "faster or slower in training by up to this share; likewise gain_db, noise, snr_db, shift_seconds, "
                    "band_limit and mix (0)",
                ),
                (
                    "backbone",
                    "mamba1, mamba2, mamba2_tiny, mamba2_small, mamba2_medium, transformer or hybrid (mamba2); "
                    "bimamba2 and bimamba2_rc are for genomics",
                ),
                ("trainer", "auto, cpu or gpu; multi_gpu is refused, for sound trains on one device (auto)"),
                ("trainer.max_steps", "optimizer steps (1000)"),
                ("trainer.max_minutes", "stop and save after this long (no limit)"),
                ("trainer.segment_length", "train longer windows exactly, with the memory of so many samples (whole)"),
                (
                    "experiment",
                    "a complete recipe: audio_demo, drums, drums_spectrogram, drums_stream, dialogue, prompts, "
                    "music_8k, music_65k, music_524k or music_1m",
                ),
                ("run.dir", "run folder (runs/audio-<date>-<time>); run.overwrite=true replaces a run there"),
                ("run.export", "write the settings to this YAML file, for a machine without Hydra, and train nothing"),
                ("resume", "run folder or MLflow run id of a run to go on with"),
                TRACKING,
                ("tracking.enabled", "false records nothing in MLflow"),
            ),
            examples=(
                "train data.root=clips/ task=classify",
                "train data.manifest=labels.csv task=spectrogram data.test=[kit3]",
                "train data.root=mine/ task=generate task.pretrained=runs/voice/model",
                "train experiment=audio_demo",
                "train resume=runs/audio_demo",
            ),
            schema=f"{_HERE}.roots:TrainRoot",
            run=f"{_HERE}.commands:train",
        ),
        Command(
            word="evaluate",
            summary="Measure a model on the clips held out from it, beside its baselines.",
            about="Of a classifier: accuracy, balanced accuracy, F1 of each class and the confusion matrix, beside the "
            "most frequent label and a logistic regression on MFCCs, with paired bootstrap intervals over clips and "
            "groups. Of a generator: bits per sample, beside a linear predictor and a context model, in all, by clip "
            "and by how much was heard before. Table, numbers and plots are kept beside the model and in its MLflow "
            "run.",
            options=(
                MODEL,
                ("max_seconds", "of a clip to be named, from its beginning (60)"),
                ("max_samples", "predict at most this many, of the first test clips (all)"),
                ("contexts", "predict once more, forgetting all every so many samples, as in [1024,8192] (none)"),
                ("resamples", "of the bootstrap (2000)"),
                ("chunk", "samples at a time (65536); changes memory and speed, not the result"),
                ("out", "folder (evaluation/ beside the model folder)"),
                ("data.root", "the clips of the training, where they are not where they were then; or data.manifest"),
                DEVICE,
                TRACKING,
            ),
            examples=("evaluate model=runs/audio_demo/model", "evaluate model=runs/audio_demo/model contexts=[1024]"),
            schema=f"{_HERE}.roots:EvaluateRoot",
            run=f"{_HERE}.commands:evaluate",
        ),
        Command(
            word="predict",
            summary="Label recordings of any length: which sounds, from when to when.",
            about="Streams each recording through a classifier in one direction, many side by side: no windows, and "
            "the memory of a few blocks. Sounds begin and end by their loudness; each is heard from its beginning and "
            "named at its end. Writes tables with file, start, end, label and score. Files that cannot be used are "
            "kept aside with a reason (rejects.csv). Recordings that are done are skipped, so the same line goes on "
            "after an interruption, and with what has come since. A model in both directions, or of spectrograms, "
            "names whole clips; train one for streams with task.classifier.bidirectional=false.",
            options=(
                MODEL,
                ("data.root", "folder of recordings, or a file"),
                ("data.manifest", "CSV with a column path, in place of all files of data.root"),
                ("out", "folder of the tables"),
                ("mode", "stream, clips (one label a file) or auto: stream if the model can (auto)"),
                ("quiet_db", "RMS in dBFS below which 10 ms are quiet; null: nothing is (-50)"),
                ("hold_seconds", "so much quiet ends a sound (0.2)"),
                ("longest_seconds", "what lasts longer is judged anew (data.max_seconds of the training)"),
                ("shortest_seconds", "shorter sounds are passed over (0.05)"),
                ("frames", "true: also the probabilities every 10 ms, a table for each recording (false)"),
                ("table", "csv or parquet (csv)"),
                ("streams", "recordings side by side (16); changes speed, not the result"),
                DEVICE,
            ),
            examples=("predict model=runs/drums_stream/model data.root=incoming/ out=labels/",),
            schema=f"{_HERE}.roots:PredictRoot",
            run=f"{_HERE}.commands:predict",
        ),
        Command(
            word="generate",
            summary="Draw sounds from a generator.",
            about="Goes on from a prompt sample by sample, in constant time and memory for each, as loud as the "
            "prompt, and writes WAV files, each of which begins with the prompt, what it takes to draw them again, "
            "spectrograms, and a page that plays them. The MLflow run of the model gets them too.",
            options=(
                MODEL,
                ("prompt", "sound file to go on from (none)"),
                ("prompt_seconds", "of its end that are read (all)"),
                ("seconds", "to draw, behind the prompt (5)"),
                ("count", "sounds, drawn side by side (1)"),
                ("temperature", "below 1 prefers what the model holds likely (1.0)"),
                ("top_p", "draw from the likeliest levels of this probability together (1.0)"),
                ("seed", "the same seed gives the same bytes (0)"),
                ("out", "folder of the sounds: a new one, or that of the same draw"),
                DEVICE,
                TRACKING,
            ),
            examples=("generate model=runs/prompts/model prompt=seed.wav seconds=5 count=8 seed=0 out=samples/",),
            schema=f"{_HERE}.roots:GenerateRoot",
            run=f"{_HERE}.commands:generate",
        ),
        import_run("audio"),
    ),
)
