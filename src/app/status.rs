//! `nftproxyd status`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::watch;
use crate::cli::{Output, StatusArgs};
use crate::nftables::LinuxKernel;
use crate::status::{self, AskError, Filter, Picture, Seen};

/// The exit status where there is nothing of what was asked for.
const NOTHING: u8 = 3;

/// The exit status of a command line that is wrong, as the parser has it.
const WRONG_COMMAND_LINE: u8 = 2;

/// From one look to the other with `--rate`.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// So many notes below the table of all frontends.
const MOST_NOTES: usize = 20;

/// Says what the node does with Services, or with those that are asked for.
pub(super) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let filter = match &args.what {
        Some(what) => match Filter::parse(what) {
            Ok(filter) => filter,
            Err(error) => {
                eprintln!("error: {error}");
                return Ok(WRONG_COMMAND_LINE.into());
            }
        },
        None => Filter::All,
    };
    let table = super::table(args.service_proxy_name.as_deref());
    let address = args.metrics_bind_address.unwrap_or_else(|| super::metrics_address(table));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    if args.history {
        let changes =
            runtime.block_on(status::ask_history(address)).map_err(|error| anyhow::anyhow!("daemon {error}"))?;
        let changes = status::changes_of(changes, &filter);
        let changes = changes.context("--history: of NAMESPACE or NAMESPACE/NAME, or of all")?;
        let text = match args.output {
            Output::Table => status::history_text(&changes),
            Output::Json => serde_json::to_string_pretty(&changes).context("cannot write JSON")? + "\n",
        };
        io::stdout().write_all(text.as_bytes()).context("cannot write")?;
        if changes.is_empty() {
            let of = args.what.as_deref().map(|what| format!(" of {what}")).unwrap_or_default();
            eprintln!("the daemon remembers no change{of}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut kernel = LinuxKernel::of(table)?;
    let families = kernel.tables()?;
    let daemon = runtime.block_on(status::ask(address));
    // A daemon that has no table yet says what it waits for.
    let no_table = || anyhow::anyhow!("there is no table {table}: nothing is proxied on this node");
    if families.is_empty() && daemon.is_err() {
        return Err(no_table());
    }
    if let Some(seconds) = args.watch {
        let every = Duration::from_secs(seconds.into());
        return runtime.block_on(watch::watch(kernel, &filter, address, every)).map(|()| ExitCode::SUCCESS);
    }
    let named = if daemon.is_ok() { runtime.block_on(status::ask_named(address, &filter)) } else { None };
    let mut look = |seen: Option<&mut Seen>| {
        status::look(&mut kernel, &families, &filter, daemon.as_ref().ok(), named.as_ref(), seen)
    };
    let mut seen = Seen::default();
    let mut picture = look(args.rate.then_some(&mut seen))?;
    if args.rate {
        std::thread::sleep(BETWEEN_LOOKS);
        picture = look(Some(&mut seen))?;
    }
    let known = match &daemon {
        Ok(_) => runtime.block_on(status::ask_known(address, &filter, &picture.frontends)),
        Err(_) => Ok(Vec::new()),
    };
    let (known, unknown) = or_why(known);
    status::add_known(&mut picture.frontends, &known);
    let accounted = match &daemon {
        Ok(_) => runtime.block_on(status::ask_accounted(address)),
        Err(_) => Ok(Vec::new()),
    };
    let (accounted, unaccounted) = or_why(accounted);
    status::add_accounted(&mut picture.frontends, &accounted);
    let tables = status::tables(&mut kernel, daemon.as_ref().ok())?;
    let Picture { frontends, node_ports, since, new_from } = &picture;
    let is_known = !known.is_empty();
    let nothing = frontends.is_empty() && filter != Filter::All;
    let text = match args.output {
        Output::Table => {
            let mut head = match &daemon {
                Ok(daemon) => status::daemon_text(daemon),
                Err(error) => format!("daemon    {error}; this is what the kernel has\n"),
            };
            if let Some(error) = &unknown {
                head.push_str(&format!("pods      the daemon {error}\n"));
            }
            if let Some(error) = &unaccounted {
                head.push_str(&format!("totals    the daemon {error}\n"));
            }
            head += &status::tables_text(&tables);
            if since.is_some() {
                head.push_str(&format!("rate      new connections are counted {}\n", status::new_from_text(&picture)));
            }
            head += &status::node_ports_text(frontends, node_ports);
            let most = if filter == Filter::All { MOST_NOTES } else { usize::MAX };
            let notes = status::notes(frontends, &known, most);
            let space = if notes.is_empty() { "" } else { "\n" };
            let table = if nothing { String::new() } else { status::table(&picture) };
            format!("{head}\n{table}{space}{notes}\n{}", status::totals(&picture))
        }
        Output::Json => {
            let status = serde_json::json!({
                "daemon": daemon.as_ref().ok(),
                "daemonError": daemon.as_ref().err().map(AskError::to_string),
                "servicesError": unknown,
                "accountingError": unaccounted,
                "tables": tables,
                "nodePorts": node_ports,
                "newWithinSeconds": since.map(|since| since.as_secs_f64()),
                // Of endpoints it is always connection tracking.
                "newConnectionsFrom": since.map(|_| new_from),
                "frontends": frontends,
                // Of all they would be as much again.
                "services": (filter != Filter::All).then_some(known),
            });
            serde_json::to_string_pretty(&status).context("cannot write JSON")? + "\n"
        }
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write")?;
    if families.is_empty() {
        return Err(no_table());
    }
    if nothing {
        let what = args.what.as_deref().unwrap_or_default();
        let known = if is_known { ", which the daemon knows" } else { "" };
        eprintln!("the tables have no frontend of {what}{known}");
        return Ok(NOTHING.into());
    }
    Ok(ExitCode::SUCCESS)
}

/// What the daemon has answered; else nothing, and why.
fn or_why<T>(answer: Result<Vec<T>, AskError>) -> (Vec<T>, Option<String>) {
    answer.map_or_else(|error| (Vec::new(), Some(error.to_string())), |list| (list, None))
}
