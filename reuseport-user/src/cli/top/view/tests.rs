use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Cell;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};

use super::super::app::Wish;
use super::*;
use crate::observe::Snapshot;
use crate::observe::test::{agent, counted, group, listener, snapshot};
use crate::steer::Notice;

/// Two seconds with 100 selections of slot 0 and 20 of slot 1, half of those on its CPU.
fn app() -> App {
    let listeners = || {
        let mut listeners = vec![listener(10, Some(0), 0), listener(11, Some(1), 1)];
        listeners[1].listener.queued = 120;
        listeners[1].role = Role::Standby;
        listeners
    };
    let then = counted(group(listeners()), &[(0, 0, 1000)]);
    let mut now = counted(group(listeners()), &[(0, 0, 1200), (0, 1, 20), (1, 1, 20)]);
    now.problems.push(Notice { what: "it is odd".to_owned(), remedy: "make it even".to_owned() });
    let mut app = App::new(Duration::from_secs(2), "somewhere".to_owned(), snapshot(1, vec![then]));
    app.sample(Ok(snapshot(3, vec![now])));
    app
}

fn key(app: &mut App, code: KeyCode) -> Wish {
    app.event(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn frame(app: &mut App, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(app, frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(width.max(1)));
    rows.map(|row| row.iter().map(Cell::symbol).collect::<String>())
        .map(|row| row.trim_end().to_owned())
        .collect()
}

#[test]
fn a_frame_shows_workers_rows_rates_and_problems() {
    let shown = frame(&mut app(), 120, 16);
    assert_eq!(shown[0], "reuseport-steer top  somewhere  every 2s");
    assert!(
        shown[1].starts_with("tcp 127.0.0.1:8080  steered: policy cpu, program 7"),
        "{shown:#?}"
    );
    assert_eq!(
        shown[2..12],
        [
            "  120/s, 91.66 % local: first choice 120, second 0, spilled 0, migrated 0, missed 0",
            "  SLOT*  WORKER     WEIGHT   CPUS  QUEUED              PER S  SHARE   SELECTED",
            "  0      worker 10  100 %    0     [#       ] 3/128    100    83.3 %  1,200",
            "  1      worker 11  standby  1     [########] 120/128  20     16.7 %  40",
            "  CPU  SLOT  THEN  PER S  OF ALL   SELECTED",
            "  0    0     1     110    98.39 %  1,220",
            "  1    1     0     10     1.61 %   20",
            "  ! it is odd",
            "    -> make it even",
            "",
        ],
        "{shown:#?}"
    );
    assert_eq!(shown[15], KEYS);
    // On paper it is the same, as long as it takes.
    assert_eq!(text(&app())[..11], shown[..11]);
}

#[test]
fn a_full_queue_and_a_problem_stand_out() {
    let mut terminal = Terminal::new(TestBackend::new(120, 16)).unwrap();
    let mut app = app();
    terminal.draw(|frame| draw(&mut app, frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let color = |text: &str, row: u16| {
        let line: String = (0..120).map(|x| buffer[(x, row)].symbol().to_owned()).collect();
        let x = line.find(text).unwrap_or_else(|| panic!("no {text} in {line}"));
        buffer[(x as u16, row)].fg
    };
    assert_eq!(color("3/128", 4), Color::Reset);
    assert_eq!(color("120/128", 5), Color::Red);
    assert_eq!(color("it is odd", 9), Color::Yellow);
}

#[test]
fn keys_sort_reverse_and_quit() {
    fn order(app: &mut App) -> Vec<String> {
        let shown = frame(app, 120, 16);
        let workers = shown.iter().filter(|line| line.contains("worker 1"));
        workers.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    }
    let mut app = app();
    assert_eq!(order(&mut app), ["0", "1"]);
    key(&mut app, KeyCode::Char('r'));
    assert_eq!(order(&mut app), ["1", "0"]);
    key(&mut app, KeyCode::Char('r'));
    for (code, sort, expected) in [
        (KeyCode::Right, Sort::Worker, ["0", "1"]),
        (KeyCode::Right, Sort::Queue, ["1", "0"]),
        (KeyCode::Right, Sort::Rate, ["0", "1"]),
        (KeyCode::Right, Sort::Total, ["0", "1"]),
        (KeyCode::Right, Sort::Slot, ["0", "1"]),
        (KeyCode::Left, Sort::Total, ["0", "1"]),
    ] {
        assert_eq!(key(&mut app, code), Wish::Stay);
        assert_eq!(app.sort, sort);
        assert_eq!(order(&mut app), expected, "{sort:?}");
    }
    assert!(frame(&mut app, 120, 16)[3].contains("SELECTED*"));
    assert_eq!(key(&mut app, KeyCode::Char('x')), Wish::Stay);
    assert_eq!(key(&mut app, KeyCode::Char('q')), Wish::Quit);
    assert_eq!(key(&mut app, KeyCode::Esc), Wish::Quit);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(app.event(&Event::Key(interrupt)), Wish::Quit);
}

#[test]
fn a_pause_holds_the_frame_and_what_came_meanwhile_is_caught_up_with() {
    let mut app = app();
    let before = frame(&mut app, 120, 16);
    key(&mut app, KeyCode::Char('p'));
    let later = || {
        let listeners = vec![listener(10, Some(0), 0), listener(12, Some(1), 1)];
        snapshot(5, vec![counted(group(listeners), &[(0, 0, 2200)])])
    };
    app.sample(Ok(later()));
    app.sample(Err("lost".to_owned()));
    let held = frame(&mut app, 120, 16);
    assert_eq!(held[1..], before[1..]);
    assert!(held[0].ends_with("PAUSED"), "{held:#?}");
    key(&mut app, KeyCode::Char('p'));
    app.sample(Ok(later()));
    let shown = frame(&mut app, 120, 20);
    assert!(shown[2].starts_with("  500/s"), "{shown:#?}");
    let told = shown.join("\n");
    assert!(told.contains("worker 11 is gone from slot 1"), "{told}");
    assert!(told.contains("worker 12 took slot 1"), "{told}");
}

#[test]
fn what_cannot_be_seen_is_said_and_what_was_seen_stays() {
    let mut app = app();
    app.sample(Err("nobody answers; who should?".to_owned()));
    let shown = frame(&mut app, 120, 16);
    assert_eq!(shown[1..3], ["nobody answers", "who should?"]);
    assert!(shown[6].contains("worker 10"), "{shown:#?}");
    let again = snapshot(9, app.latest.groups.clone());
    app.sample(Ok(again));
    assert!(frame(&mut app, 120, 16)[1].starts_with("tcp "));
}

#[test]
fn an_agent_tells_its_own_events() {
    let mut app = app();
    let with_agent = |seconds| Snapshot {
        agent: Some(agent()),
        unseen: vec!["port 1: not permitted".to_owned()],
        ..snapshot(seconds, app.latest.groups.clone())
    };
    let (first, second) = (with_agent(7), with_agent(8));
    app.sample(Ok(first));
    app.sample(Ok(second));
    let shown = frame(&mut app, 120, 24);
    assert!(shown[1].starts_with("agent 99, up "), "{shown:#?}");
    assert!(shown[1].contains("17 ticks, 2 failed, the latest took 7.0ms"), "{shown:#?}");
    assert_eq!(shown[2], "! port 1: not permitted");
    let told = shown.join("\n");
    assert!(told.contains("ago  tcp 127.0.0.1:8080  attached"), "{told}");
    assert!(!told.contains("selections"), "{told}");
    // The same look once more changes nothing.
    let rates = app.rates.clone().map(|rates| rates.elapsed);
    app.sample(Ok(app.latest.clone()));
    assert_eq!(app.rates.map(|rates| rates.elapsed), rates);
}

#[test]
fn any_size_is_drawn_and_the_rest_can_be_scrolled_to() {
    let mut app = app();
    for width in [0, 1, 2, 20, 79, 80, 300] {
        for height in 0..20 {
            let shown = frame(&mut app, width, height);
            assert_eq!(shown.len(), if width == 0 { 0 } else { usize::from(height) });
        }
    }
    let first = frame(&mut app, 80, 5);
    key(&mut app, KeyCode::Down);
    assert_eq!(frame(&mut app, 80, 5)[1], first[2]);
    key(&mut app, KeyCode::PageDown);
    assert_eq!(app.scroll, 4);
    key(&mut app, KeyCode::End);
    let last = frame(&mut app, 80, 5);
    for _ in 0..10 {
        key(&mut app, KeyCode::Down);
    }
    assert_eq!(frame(&mut app, 80, 5), last, "it ends somewhere");
    // A larger terminal shows all of it again.
    assert_eq!(frame(&mut app, 80, 40)[1], first[1]);
    key(&mut app, KeyCode::Home);
    assert_eq!(frame(&mut app, 80, 5), first);
}

#[test]
fn nothing_to_show_is_said() {
    let mut app = App::new(Duration::from_secs(1), String::new(), snapshot(1, Vec::new()));
    assert_eq!(frame(&mut app, 80, 5)[1], "nothing is steered");
    let mut many = group(vec![listener(10, Some(0), 0)]);
    let steering = many.steering.as_mut().unwrap();
    steering.rows.extend((2..512).map(|row| RowStatus { row, first: vec![0], second: Vec::new() }));
    app.sample(Ok(snapshot(2, vec![counted(many, &[(300, 0, 1)])])));
    let told = text(&app).join("\n");
    assert!(told.contains("\n  300  0     -"), "{told}");
    assert!(told.contains("511 CPUs that received nothing yet are not shown"), "{told}");
}
