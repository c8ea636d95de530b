"""The time series command line: ``python -m pipelines.timeseries <command>``."""

from pipelines.cli import DEVICE, MODEL, TRACKING, Command, Domain, import_run

_HERE = "pipelines.timeseries"

_PATH = ("data.path", "CSV or Parquet: a file, a folder or a glob")
_STORES = ("data.stores", "folder in which prepared tables are kept and found again (stores)")
_COLUMNS = (
    ("data.time", "column of stamps (ds)"),
    ("data.id", "column that names the series (unique_id); a table without it is one series"),
    ("data.target", "column, or [columns], to forecast (y)"),
    ("data.past", "[columns] of covariates known up to now"),
    ("data.future", "[columns] of covariates known in advance"),
    ("data.static", "[columns] of numbers that do not change within a series"),
    (
        "data.kind",
        "price (log returns are modelled), return (as it is), level (differences), variance or volatility "
        "(measured ones: log changes) (price)",
    ),
    ("data.zone", "time zone whose clock is read, as Europe/Zurich (as the stamps are written)"),
)

TIMESERIES = Domain(
    name="timeseries",
    summary="Probabilistic forecasts of financial time series from very long histories.",
    experiments=("dowjones", "sp500", "usdchf"),
    commands=(
        Command(
            word="prepare",
            summary="Turn a long table of series into a store that training reads at random positions.",
            about="Reads CSV or Parquet in pieces, however large, sorts each series by time, keeps aside what cannot "
            "be used, with the reason, and writes a folder whose name holds a hash of what was read, so that preparing "
            "the same table again finds it. The other commands prepare what they need by themselves.",
            options=(
                (_PATH[0], f"{_PATH[1]} (the bundled S&P 500, NASDAQ and WTI)"),
                *_COLUMNS,
                ("data.min_rows", "series with fewer observations are kept aside (64)"),
                _STORES,
            ),
            examples=("prepare data.path='prices/*.parquet' data.time=ds data.id=unique_id data.target=y",),
            schema=f"{_HERE}.roots:PrepareRoot",
            run=f"{_HERE}.commands:prepare",
        ),
        Command(
            word="train",
            summary="Train a forecaster.",
            about="Trains on everything before the validation part, and writes a run folder with the measurements, "
            "checkpoints, and the model folder, which is all that the other commands need. The run is recorded in "
            "MLflow. A run that was stopped or killed goes on with resume=<its folder or MLflow run id>.",
            options=(
                (_PATH[0], f"{_PATH[1]} (the bundled S&P 500, NASDAQ and WTI)"),
                *_COLUMNS,
                ("data.horizon", "steps ahead (1)"),
                ("data.test", "where the test part starts: a stamp, or the share of rows that comes last (0.2)"),
                ("data.validation", "likewise, of what comes before (0.1)"),
                ("data.window", "steps that the model sees at once in training (1024)"),
                ("head.kind", "student_t, mixture, quantiles or normal (student_t)"),
                (
                    "backbone",
                    "mamba1, mamba2, mamba2_tiny, mamba2_small, mamba2_medium, transformer or hybrid (mamba2_tiny); "
                    "bimamba2 and bimamba2_rc are for genomics",
                ),
                ("trainer", "auto, cpu or gpu (auto); multi_gpu is for genomics"),
                ("trainer.max_steps", "optimizer steps (1000)"),
                ("experiment", "a complete recipe: sp500, usdchf or dowjones"),
                ("run.dir", "run folder (runs/timeseries-<date>-<time>); run.overwrite=true replaces a run there"),
                ("run.export", "write the settings to this YAML file, for a machine without Hydra, and train nothing"),
                ("resume", "run folder or MLflow run id of a run to go on with"),
                TRACKING,
                ("tracking.enabled", "false records nothing in MLflow"),
            ),
            examples=(
                "train data.path=prices.parquet data.horizon=5 data.test=2024-01-01",
                "train experiment=sp500",
                "train resume=runs/sp500",
            ),
            schema=f"{_HERE}.roots:TrainRoot",
            run=f"{_HERE}.commands:train",
        ),
        Command(
            word="evaluate",
            summary="Walk a model through the part held out from it, the baselines beside it.",
            about="A forecast at every step of the test part, from the state carried on, and those of naive, EWMA, "
            "GARCH and statistical models at the same cut-offs. Prints scores, coverage, value at risk with its tests, "
            "and whether the differences could be chance. Table, numbers and plots are kept beside the model and in "
            "its MLflow run.",
            options=(
                MODEL,
                ("baselines", "[names] of those wanted (all)"),
                ("series", "[names] of the series that are scored (all)"),
                ("stride", "every how many steps a forecast is made (1)"),
                ("max_cutoffs", "forecasts a series, the last ones (all)"),
                ("unit", "increments are multiplied by it in the table (100 for prices, else 1)"),
                ("calibrate", "correct intervals by what was missed before (true)"),
                ("out", "folder (evaluation/ beside the model folder)"),
                ("data.path", "the table of the training, where it is not where it was then"),
                DEVICE,
                TRACKING,
            ),
            examples=("evaluate model=runs/sp500/model",),
            schema=f"{_HERE}.roots:EvaluateRoot",
            run=f"{_HERE}.commands:evaluate",
        ),
        Command(
            word="forecast",
            summary="The batch job: forecast behind the last row of every series, reading new rows alone.",
            about="Keeps a state of fixed size for each series in the folder state, so that the next run reads only "
            "rows that it has not seen, however long the history. Rows that come again are compared and skipped; a "
            "series whose past has changed is refused by name. A run that was killed is simply run again: each "
            "forecast is written once. Series without new rows are not forecast again, whatever is asked for.",
            options=(
                MODEL,
                _PATH,
                ("out", "folder of the forecasts, Parquet by date of the cut-off"),
                ("state", "folder of what is kept of each series"),
                ("calibrate", "trailing: intervals corrected by the last outcomes; validation: once; none (trailing)"),
                ("calibration_window", "outcomes of each series that count (as the states have it; of new ones 250)"),
                ("compare_rows", "the last rows of each series, which can come again in any part (256)"),
                ("paths", "sampled futures of each series with new rows, written to paths/ in the folder out (0)"),
                ("path_steps", "their length (20); seed decides them"),
                ("reread", "true drops states of another model or window; data.path holds whole histories (false)"),
                ("engine", "local, or ray with pip install '.[ray]' (local)"),
                ("workers", "actors of engine=ray (2)"),
                DEVICE,
                TRACKING,
            ),
            examples=("forecast model=runs/sp500/model data.path=new/ out=forecasts/ state=states/",),
            schema=f"{_HERE}.roots:ForecastRoot",
            run=f"{_HERE}.commands:forecast",
        ),
        import_run("timeseries"),
    ),
)
