package sim

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	mutantsFlag = flag.Bool("sim.mutants", false, "break the product line by line and want the simulation to notice")
	mutantFlag  = flag.String("sim.mutant", "", "only mutants whose name matches")
	mutantSeeds = flag.Int("sim.mutant-seeds", 60, "schedules that each mutant is given")
)

// mutant is one line of the product, broken.
type mutant struct {
	name, file string
	old, new   string
	aim        string  // the fault that its schedules are aimed at; empty: any
	want       Verdict // that at least one schedule has; empty: none has any but Sound
	// unseen says why the simulation cannot notice, or too seldom to be asked for it, and which test does.
	unseen string
}

var mutants = []mutant{
	{name: "follower gate", file: "replication/runner/transport.go",
		old: "!t.cfg.Gate(last.Index, last.Term, reply)", new: "reply(nil); false", want: NotLinearizable},
	{name: "leader gate", file: "replication/runner/transport.go",
		old: "!t.cfg.Gate(last.Index, last.Term, func(err error) { join.add(resp, err) })",
		new: "join.add(resp, nil); false", want: NotLinearizable},
	{name: "lone voter", file: "replication/logstore.go",
		old: "mustWait := s.votersBefore(logs[0].Index) <= 1", new: "mustWait := false", want: NotLinearizable},
	{name: "configuration entry", file: "replication/logstore.go",
		// The group loses its configuration: it is not whole again. Its history is short, and linearizable.
		old: "\t\t\tmustWait = true\n", new: "\n", want: Finding},
	{name: "promise", file: "replication/runner/promise.go",
		old: "if !passes && now.Before(p.until) {", new: "if false && !passes && now.Before(p.until) {",
		aim: "late vote", want: NotLinearizable},
	{name: "lease ready", file: "replication/runner/lease.go",
		old: "return l.term == term && l.ready && !l.transferred && l", new: "return l.term == term && !l.transferred && l",
		unseen: "group.leading has waited for the same flag before; TestLease"},
	{name: "lease transferred", file: "replication/runner/lease.go",
		old: "return l.term == term && l.ready && !l.transferred && l", new: "return l.term == term && l.ready && l",
		aim: "deaf transfer", want: NotLinearizable},
	{name: "lease time", file: "replication/runner/lease.go",
		old: "l.majorityLocked(self, c, now.Add(-l.span))", new: "l.majorityLocked(self, c, time.Time{})",
		aim: "late answers", want: NotLinearizable},
	{name: "ranges", file: "replication/ranges.go",
		old: "if o.first < h.end && h.first < o.end {", new: "if false && o.first < h.end && h.first < o.end {", want: NotLinearizable},
	{name: "read term", file: "replication/extent/table/volume.go",
		old: "case o.ReadTerm != 0 && o.ReadTerm != term:", new: "case false:",
		aim: "slow merge", want: NotLinearizable},
	{name: "generation", file: "replication/extent/table/volume.go",
		old: "case o.Generation < v.generation:\n\t\t// Guards I2: what an earlier", new: "case false:\n\t\t// Guards I2: what an earlier", want: NotLinearizable},
	{name: "session window", file: "replication/extent/table/volume.go",
		old: "case window.Applied(o.Seq):", new: "case false:",
		aim: "lost answer", want: NotLinearizable},
	{name: "closed session", file: "replication/extent/table/volume.go",
		old: "\t\tdelete(v.live, o.Session)\n\t\tv.keepClosed(o.Session, *w)\n", new: "",
		aim: "late copy", want: NotLinearizable},
	{name: "predecessors", file: "gateway/volume/session.go",
		old: "for _, id := range info.Predecessors {", new: "for _, id := range info.Predecessors[:0] {",
		aim: "late copy", want: NotLinearizable},
	{name: "empty by hearsay", file: "replication/serve.go",
		old: "if err := g.confirmRead(ctx, op.ReadQuorum); err != nil {", new: "if err := error(nil); err != nil {",
		aim: "stale look", want: NotLinearizable},
	{name: "torn tail", file: "replication/segment/recovery.go|replication/segment/scan.go",
		old: "\tif clean {\n\t\treturn r.continueAt(end)", new: "\tif clean || end != 0 && l.segments[end.Segment()] != nil {\n\t\treturn r.continueAt(end)",
		unseen: "a batch fills its last page with zeroes, and disks of the simulation tear at pages, so old bytes are read again only where " +
			"a batch ends with a page and an intact old record begins there, with its number and position, and the power goes again; " +
			"real disks tear at sectors. TestTornPayload (replication/segment) writes what it takes"},
}

const repository = "../.."

// source returns the mutant's file and its text, broken; found: in exactly one place.
func (m *mutant) source(t *testing.T) (path, broken string) {
	t.Helper()
	for f := range strings.SplitSeq(m.file, "|") {
		path, err := filepath.Abs(filepath.Join(repository, f))
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), m.old); n == 1 {
			return path, strings.Replace(string(text), m.old, m.new, 1)
		}
	}
	t.Fatalf("mutant %q: the line is not in %s (or not once): %q", m.name, m.file, m.old)
	return "", ""
}

// TestMutants breaks the product in one place after the other, through an overlay, and wants the simulation to find a
// violation within a bounded number of schedules. Without -sim.mutants it only checks that the lines are still there.
func TestMutants(t *testing.T) {
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			path, broken := m.source(t)
			if *mutantsFlag && strings.Contains(m.name, *mutantFlag) {
				m.judge(t, m.build(t, path, broken))
			}
		})
	}
}

// build makes the test binary of the broken product.
func (m *mutant) build(t *testing.T, path, broken string) (binary string) {
	t.Helper()
	dir := t.TempDir()
	changed, list, binary := filepath.Join(dir, "broken.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "sim.test")
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	if err == nil {
		err = errors.Join(os.WriteFile(list, overlay, 0o600), os.WriteFile(changed, []byte(broken), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-overlay", list, "-c", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("the broken product does not build: %v\n%s", err, out)
	}
	return binary
}

// judge runs the schedules and compares what they show with what the table expects.
func (m *mutant) judge(t *testing.T, binary string) {
	t.Helper()
	began := time.Now()
	firsts, counts := map[Verdict]int{}, map[Verdict]int{}
	for seed := 1; seed <= *mutantSeeds; { // a schedule that ends its process is not the last one
		last, verdicts, err := m.schedules(t, binary, seed)
		if last < seed {
			t.Fatalf("no schedule was run from seed %d: %v", seed, err)
		}
		for at, v := range verdicts {
			if counts[v]++; firsts[v] == 0 || at < firsts[v] {
				firsts[v] = at
			}
		}
		seed = last + 1
	}
	var row []string
	for _, v := range []Verdict{NotLinearizable, Finding, Panic, Stuck, Undecided} {
		if counts[v] > 0 {
			row = append(row, fmt.Sprintf("%s: %d (first seed %d)", v, counts[v], firsts[v]))
		}
	}
	t.Logf("| %s | %s | %s | of %d in %v", m.name, m.aim, strings.Join(row, ", "), *mutantSeeds, time.Since(began).Round(time.Second))
	switch {
	case m.want != "" && counts[m.want] == 0:
		t.Errorf("not found: want a verdict %q", m.want)
	case m.want == "" && len(row) > 0:
		t.Errorf("found, though %s", m.unseen)
	}
}

var (
	begunSeed = regexp.MustCompile(`=== RUN +TestSchedules/seed=(\d+)`)
	verdictOf = regexp.MustCompile(`verdict of seed (\d+): ([a-z ]+?)(?: for |\n)`)
)

// schedules runs schedules from a seed on, until they are done or one ends the process, and returns the last one begun and
// the verdicts that are not Sound.
func (m *mutant) schedules(t *testing.T, binary string, from int) (last int, verdicts map[int]Verdict, err error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary, "-test.v", "-test.timeout=0", "-test.run=^TestSchedules$", "-sim.all",
		"-sim.aim="+m.aim, fmt.Sprint("-sim.from=", from), fmt.Sprint("-sim.count=", *mutantSeeds-from+1)).CombinedOutput()
	verdicts = map[int]Verdict{}
	for _, found := range verdictOf.FindAllSubmatch(out, -1) {
		seed, _ := strconv.Atoi(string(found[1])) // digits
		verdicts[seed] = Verdict(found[2])
	}
	for _, begun := range begunSeed.FindAllSubmatch(out, -1) {
		last, _ = strconv.Atoi(string(begun[1])) // digits
	}
	if last < *mutantSeeds && verdicts[last] == "" || strings.Contains(string(out), "\npanic: ") && verdicts[last] == "" {
		verdicts[last] = Panic
		t.Logf("seed %d: %s", last, firstLines(string(out[strings.Index(string(out), "panic: "):]), 3))
	}
	return last, verdicts, err
}

func firstLines(s string, n int) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[:min(n, len(lines))], "\n")
}
