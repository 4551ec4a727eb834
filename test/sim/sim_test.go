package sim

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seedFlag    = flag.Int64("sim.seed", -1, "run this schedule only")
	fromFlag    = flag.Uint64("sim.from", 1, "first schedule")
	countFlag   = flag.Int("sim.count", 0, "how many schedules; 0: as many as -sim.seconds allow")
	secondsFlag = flag.Int("sim.seconds", 45, "begin no schedule after so many seconds")
	aimFlag     = flag.String("sim.aim", "", "aim every schedule at this fault")
	allFlag     = flag.Bool("sim.all", false, "go on after a schedule that failed")
	verboseFlag = flag.Bool("sim.v", false, "print plans and what happens")
	logFlag     = flag.Bool("sim.log", false, "print the logs of all nodes")
)

// TestSchedules runs as many schedules as there is time for. A failing one prints its seed; run it again with
//
//	go test ./test/sim -run TestSchedules -sim.seed=N -sim.v
func TestSchedules(t *testing.T) {
	if *seedFlag >= 0 {
		schedule(t, uint64(*seedFlag))
		return
	}
	began := time.Now()
	var n int
	var ops int64
	for seed := *fromFlag; ; seed++ {
		if *countFlag > 0 && n >= *countFlag || *countFlag == 0 && n > 0 && time.Since(began) > time.Duration(*secondsFlag)*time.Second {
			break
		}
		ops += schedule(t, seed)
		n++
		if t.Failed() && !*allFlag {
			break
		}
	}
	elapsed := time.Since(began).Seconds()
	t.Logf("%d schedules with %d operations in %.1f s: %.2f schedules a second", n, ops, elapsed, float64(n)/elapsed)
}

// TestFoundBefore runs schedules that found something once: a Manifest.Close behind a read that waits for its disk
// (1001511, 1010323), a Replicas.Close behind a replica that is being made (1020143).
func TestFoundBefore(t *testing.T) {
	for _, seed := range []uint64{1001511, 1010323, 1020143} {
		schedule(t, seed)
	}
}

// stuckAfter is how long a schedule may take in real time.
const stuckAfter = time.Minute

// schedule runs one schedule and checks it.
func schedule(t *testing.T, seed uint64) (operations int64) {
	t.Helper()
	plan := NewPlan(seed)
	if *aimFlag != "" {
		plan.Aim(*aimFlag)
	}
	logger := slog.New(slog.DiscardHandler)
	if *logFlag {
		logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var trace func(string)
	if *verboseFlag {
		fmt.Fprint(os.Stderr, plan)
		trace = func(s string) { fmt.Fprintln(os.Stderr, s) }
	}
	watchdog := time.AfterFunc(stuckAfter, func() { // of real time: the bubble's does not pass when a lock is held across a wait
		debug.SetTraceback("all")
		panic(fmt.Sprintf("verdict of seed %d: %s for %v\n%s", seed, Stuck, stuckAfter, plan))
	})
	defer watchdog.Stop()
	t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
		var o *Outcome
		synctest.Test(t, func(*testing.T) { o = Run(plan, logger, trace) })
		operations = o.Answered
		if verdict, err := o.Err(); err != nil {
			t.Errorf("verdict of seed %d: %s\n%v\n%s\nreplay: go test ./test/sim -run TestSchedules -sim.seed=%d -sim.v", seed, verdict, err, plan, seed)
		}
		if *verboseFlag {
			t.Logf("seed %d: %d operations in %v of virtual time, digest %016x", seed, o.Answered, o.Elapsed, o.Digest)
		}
	})
	return operations
}
