//! The command line of the agent: parse, dispatch, exit code.

use std::{
    panic,
    process::{self, ExitCode},
};

use lb_user::{
    agent,
    cli::{self, Verb},
    doctor,
    operate::{self, OperateError},
    simulate,
    status::{self, Exit},
    watchdog,
};

fn main() -> ExitCode {
    end_on_panic();
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if let Err(code) = cli.start_log() {
        return code;
    }
    match cli.verb {
        Verb::Run(arguments) => {
            let is_rehearsal = arguments.dry_run;
            match arguments.resolve() {
                Ok((config, _)) if is_rehearsal => wait_for(agent::rehearse(config)),
                Ok((config, reload)) => wait_for(agent::run(config, reload)),
                Err(code) => code,
            }
        }
        Verb::Check(arguments) => match arguments.resolve() {
            Ok(request) => run(async { Ok(doctor::show(request).await) }),
            Err(code) => code,
        },
        Verb::Status(arguments) => match status::show(arguments.instance.as_str(), arguments.json) {
            Ok(exit) => exit.into(),
            Err(error) => failed(&error.into()),
        },
        Verb::Explain(arguments) => {
            let (instance, service) = (arguments.instance.as_str(), arguments.service.as_deref());
            match status::explain::show(instance, service, &arguments.suppositions, arguments.json) {
                Ok(exit) => exit.into(),
                Err(error) => failed(&error.into()),
            }
        }
        Verb::Scale(arguments) => match arguments.resolve() {
            Ok(order) => operated(operate::order::scale(arguments.instance.as_str(), order, arguments.wait)),
            Err(code) => code,
        },
        Verb::Pause(arguments) => operated(operate::order::pause(arguments.instance.as_str(), &arguments.ways())),
        Verb::Resume(arguments) => operated(operate::order::resume(arguments.instance.as_str(), &arguments.ways())),
        Verb::Rollout(arguments) => {
            let (instance, order) = (arguments.instance.as_str(), arguments.order());
            operated(operate::order::rollout(instance, &order, arguments.wait))
        }
        Verb::Events(arguments) => operated(operate::events::show(arguments.instance.as_str(), &arguments.request())),
        Verb::Simulate(arguments) => match arguments.resolve() {
            Ok(request) => match simulate::show(&request) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error.into()),
            },
            Err(code) => code,
        },
        Verb::Watchdog => watchdog::run(),
        Verb::Detach(arguments) => wait_for(agent::detach(arguments.instance.as_str(), arguments.containers)),
    }
}

/// Makes a bug end the process at once, instead of letting it go on with a task less. What serves in the kernel goes on
/// serving, and the next run takes it over.
fn end_on_panic() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |bug| {
        tell(bug);
        process::abort();
    }));
}

/// Talks to an agent.
fn operated(work: impl Future<Output = Result<Exit, OperateError>>) -> ExitCode {
    run(async { operate::concluded(work.await).map_err(Into::into) })
}

fn wait_for(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    run(async { work.await.map(|()| Exit::Healthy) })
}

fn run(work: impl Future<Output = anyhow::Result<Exit>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let outcome = runtime.block_on(work);
    // Calls to the engine that are still under way do not hold the process.
    runtime.shutdown_background();
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
