// Command bench holds storaged against the floor: what `nbdkit file`, a server that keeps one copy in one file,
// does on the same disk with the same fio jobs in the same run.
//
// It starts three storaged nodes on loopback and two nbdkit (one with FUA forced on every write, one without),
// fills a volume on both sides, and measures the idle cluster. Then it runs every job on both, one right after the other,
// in alternating order, for several rounds. At the end it freezes a leading node under load. It prints medians,
// the ratios to the floor and what the servers used, says which targets of docs/performance.md are met, and writes
// the rows to bench/out.json. A missed target is no failure: the exit status tells only whether it could measure.
//
// Subcommands answer one question each: `space` what compaction writes, `scale` how cost grows with one factor,
// `start` how long a start takes after kill -9, `memory` what is resident with much mapped, `stages` where the time of a
// write at depth 1 goes.
//
// How far a long step is goes to standard error: on a terminal in one line, elsewhere in a line every 30 s.
//
// What it measures and how is told in docs/performance.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/internal/clock"
)

// config is what the flags say.
type config struct {
	storaged  string        // the binary
	system    string        // what is measured: storaged, or nbdkit as a stand-in to try the bench itself
	dir       string        // where both sides keep their data; must be on a disk
	out       string        // where the rows go
	sizeBytes int64         // of the volume
	rounds    int           // how often each job runs on each side
	perJob    time.Duration // how long
	idle      time.Duration // how long the idle cluster is watched
	freeze    time.Duration // how long a leader is frozen; 0 leaves that out
	only      string        // name of the only job to run; empty runs all
	groups    int           // that the volume is striped over; 0: as the cluster chooses
	keep      bool          // leave dir behind
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command(withProgress(ctx, os.Stderr), os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// command runs what the arguments say: the comparison with the floor, or what the first of them names.
func command(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "space":
			return runParsed(ctx, args[1:], parseSpaceFlags, runSpace)
		case "scale":
			return runParsed(ctx, args[1:], parseScaleFlags, runScale)
		case "start":
			return runParsed(ctx, args[1:], parseStartFlags, runStart)
		case "repair":
			return runParsed(ctx, args[1:], parseRepairFlags, runRepair)
		case "stages":
			return runParsed(ctx, args[1:], parseStagesFlags, runStages)
		case "placement":
			return runParsed(ctx, args[1:], parsePlacementFlags, runPlacement)
		case "memory":
			return runParsed(ctx, args[1:], parseMemoryFlags, runMemory)
		}
	}
	return runParsed(ctx, args, parseFlags, run)
}

func runParsed[C any](ctx context.Context, args []string, parse func([]string) (C, error), run func(context.Context, C, io.Writer) error) error {
	cfg, err := parse(args)
	if err != nil {
		return err
	}
	return run(ctx, cfg, os.Stdout)
}

func parseFlags(args []string) (config, error) {
	var cfg config
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&cfg.storaged, "storaged", "bin/storaged", "the storaged `binary`")
	flags.StringVar(&cfg.system, "system", "storaged", "what to measure: storaged, or nbdkit to try the bench itself")
	flags.StringVar(&cfg.dir, "dir", "bin/bench-run", "`directory` for the data of both sides, on the disk to measure")
	flags.StringVar(&cfg.out, "out", "bench/out.json", "`file` for the rows")
	gib := flags.Int64("size-gib", 4, "size of the volume in GiB")
	flags.IntVar(&cfg.rounds, "rounds", 5, "how often each job runs on each side")
	flags.DurationVar(&cfg.perJob, "time", 5*time.Second, "how long each job runs")
	flags.DurationVar(&cfg.idle, "idle", 20*time.Second, "how long the idle cluster is watched")
	flags.DurationVar(&cfg.freeze, "freeze", 8*time.Second, "how long a leading node is frozen; 0 leaves that out")
	flags.StringVar(&cfg.only, "job", "", "run only the job of this `name`")
	flags.IntVar(&cfg.groups, "groups", 0, "`number` of groups that the volume is striped over; 0 leaves that to the cluster")
	flags.BoolVar(&cfg.keep, "keep", false, "leave the data behind")
	quick := flags.Bool("quick", false, "short: 2 rounds of 2 s on 1 GiB; figures too rough to keep")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	if *quick {
		given := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
		quickly := func(name string, set func()) {
			if !given[name] {
				set()
			}
		}
		quickly("size-gib", func() { *gib = 1 })
		quickly("rounds", func() { cfg.rounds = 2 })
		quickly("time", func() { cfg.perJob = 2 * time.Second })
		quickly("idle", func() { cfg.idle = 5 * time.Second })
	}
	cfg.sizeBytes = *gib << 30
	return cfg, cfg.validate()
}

func (cfg config) validate() error {
	var errs []error
	if cfg.sizeBytes < 1<<30 || cfg.sizeBytes > 1<<40 {
		errs = append(errs, errors.New("-size-gib: from 1 to 1024"))
	}
	if cfg.rounds < 1 || cfg.perJob < time.Second || cfg.perJob%time.Second != 0 {
		errs = append(errs, errors.New("-rounds: at least 1; -time: whole seconds, at least 1s"))
	}
	if cfg.system != "storaged" && cfg.system != "nbdkit" {
		errs = append(errs, fmt.Errorf("-system %s: storaged or nbdkit", cfg.system))
	}
	if cfg.only != "" && !slices.ContainsFunc(jobs, func(j job) bool { return j.name == cfg.only }) {
		errs = append(errs, fmt.Errorf("-job %s: no such job", cfg.only))
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, cfg config, w io.Writer) (err error) {
	dir, err := workDir(cfg.dir, roomFor(cfg.sizeBytes))
	if err != nil {
		return err
	}
	if !cfg.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	floor, err := startFloor(ctx, dir, cfg.sizeBytes)
	if err != nil {
		return err
	}
	defer floor.stop()
	fmt.Fprintf(w, "starting %s, and nbdkit beside it, in %s\n", cfg.system, dir)
	sys, err := startSystem(ctx, cfg, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.stop()) }()

	device, err := diskOf(dir)
	if err != nil {
		return err
	}
	for _, s := range []*server{floor.plain, floor.fua, sys} {
		s.disk = device
	}
	for _, s := range []*server{floor.plain, sys} {
		m, err := s.run(ctx, fillJob, cfg.sizeBytes, 0, 0)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "filled %d GiB on %s, %.0f MB/s\n", cfg.sizeBytes>>30, s.name, m.MBPerS)
	}
	results := results{config: cfg}
	if results.idlePercent, err = measureIdle(ctx, cfg, sys, w); err != nil {
		return err
	}
	if results.rows, err = runRounds(ctx, cfg, floor, sys, w); err != nil {
		return err
	}
	if cfg.freeze > 0 && sys.leading != nil {
		if results.stall, err = measureStall(ctx, cfg, sys, w); err != nil {
			return err
		}
	}
	results.print(w)
	return results.write(cfg.out)
}

// roomFor is what a volume of a size needs: one copy for the floor, three for storaged, and as much again for what random writes leave behind.
func roomFor(sizeBytes int64) int64 { return 8*sizeBytes + 8<<30 }

// workDir makes a directory for data in another one, on a disk with room.
func workDir(parent string, needBytes int64) (string, error) {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, "run-")
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	if st.Type == unix.TMPFS_MAGIC {
		return "", fmt.Errorf("%s is in memory (tmpfs); name a directory on a disk with -dir", dir)
	}
	if free := int64(st.Bavail) * st.Bsize; free < needBytes {
		return "", fmt.Errorf("%s has %d GiB free and this needs about %d; name another with -dir, or ask for less data",
			dir, free>>30, needBytes>>30)
	}
	return dir, nil
}

// measureIdle returns how much of one core the idle system uses, in percent.
func measureIdle(ctx context.Context, cfg config, sys *server, w io.Writer) (float64, error) {
	fmt.Fprintf(w, "watching %s idle for %v ", sys.name, cfg.idle)
	if err := clock.Sleep(ctx, 5*time.Second); err != nil { // what the fill left to do in the background
		return 0, err
	}
	before, err := sys.usage()
	if err != nil {
		return 0, err
	}
	from := time.Now()
	if err := clock.Sleep(ctx, cfg.idle); err != nil {
		return 0, err
	}
	after, err := sys.usage()
	if err != nil {
		return 0, err
	}
	percent := 100 * after.Since(before).CPU.Seconds() / time.Since(from).Seconds()
	fmt.Fprintf(w, "%.1f %% of a core\n", percent)
	return percent, nil
}

// runRounds runs every job on both sides in turn and returns the medians, the floor's row before the system's.
func runRounds(ctx context.Context, cfg config, floor *floor, sys *server, w io.Writer) ([]row, error) {
	samples := map[string]map[string][]measure{} // by job and system
	for round := range cfg.rounds {
		for _, j := range jobs {
			if cfg.only != "" && cfg.only != j.name {
				continue
			}
			pair := []*server{floor.of(j), sys}
			if round%2 == 1 {
				slices.Reverse(pair)
			}
			for _, s := range pair {
				m, err := s.run(ctx, j, cfg.sizeBytes, cfg.perJob, round)
				if err != nil {
					return nil, err
				}
				fmt.Fprintf(w, "round %d/%d  %-15s %-12s %9.0f /s %8.1f MB/s  p50 %7.0f us  p99 %7.0f us", round+1, cfg.rounds,
					j.name, s.name, m.IOPS, m.MBPerS, m.P50us, m.P99us)
				if s.leaders != nil {
					at, err := s.leaders(ctx)
					if err != nil {
						return nil, err
					}
					fmt.Fprintf(w, "  led by %s", at)
				}
				fmt.Fprintln(w)
				if samples[j.name] == nil {
					samples[j.name] = map[string][]measure{}
				}
				samples[j.name][s.name] = append(samples[j.name][s.name], m)
			}
		}
	}
	var rows []row
	for _, j := range jobs {
		if of := samples[j.name]; of != nil {
			base := row{System: floor.of(j).name, Job: j.name, measure: median(of[floor.of(j).name])}
			mine := row{System: sys.name, Job: j.name, measure: median(of[sys.name])}
			mine.Ratio = ratio(j, mine.measure, base.measure)
			rows = append(rows, base, mine)
		}
	}
	return rows, nil
}

// measureStall freezes a leading node under small writes and returns the longest request.
func measureStall(ctx context.Context, cfg config, sys *server, w io.Writer) (time.Duration, error) {
	node, err := sys.leading(ctx)
	if err != nil {
		return 0, err
	}
	var m measure
	var fio errgroup.Group
	fio.Go(func() (err error) {
		m, err = runFio(ctx, stallJob, sys.stallURI, cfg.sizeBytes, (cfg.freeze + 6*time.Second).Truncate(time.Second), 0)
		return err
	})
	err = clock.Sleep(ctx, 3*time.Second)
	if err == nil {
		err = node.Pause()
	}
	if err == nil {
		err = clock.Sleep(ctx, cfg.freeze)
		err = errors.Join(err, node.Resume())
	}
	if err = errors.Join(err, fio.Wait()); err != nil {
		return 0, err
	}
	fmt.Fprintf(w, "froze %s, which led, for %v under random writes at depth 1: longest request %v\n", node.Name, cfg.freeze, m.longest.Round(time.Millisecond))
	return m.longest, nil
}
