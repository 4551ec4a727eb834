package sim

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	mutantsFlag = flag.Bool("sim.mutants", false, "break the product line by line and want the simulation to notice")
	mutantFlag  = flag.String("sim.mutant", "", "only mutants whose name matches")
	mutantSeeds = flag.String("sim.mutant-seeds", "400", "schedules that each mutant is given")
)

// mutant is one line of the product, broken.
type mutant struct {
	name, file string
	old, new   string
	aim        string // the fault that its schedules are aimed at; empty: any
	// unseen says why the simulation cannot notice, or too seldom to be asked for it, and which test does; empty: it must.
	unseen string
}

var mutants = []mutant{
	{name: "follower gate", file: "replication/transport.go",
		old: "t.cfg.Gate.Notify(end, func(err error) { t.replySuccess(in, req.Term, resp, err) })",
		new: "_ = end; t.replySuccess(in, req.Term, resp, nil)"},
	{name: "leader gate", file: "replication/transport.go",
		old: "t.cfg.Gate.Notify(end, func(err error) { join.add(resp, err) })",
		new: "_ = end; join.add(resp, nil)"},
	{name: "lone voter", file: "replication/logstore.go",
		old: "mustWait := s.votersBefore(logs[0].Index) <= 1", new: "mustWait := false"},
	{name: "configuration entry", file: "replication/logstore.go",
		old: "\t\t\tmustWait = true\n", new: "\n"},
	{name: "promise", file: "replication/promise.go",
		old: "if !passes && now.Before(p.until) {", new: "if false && !passes && now.Before(p.until) {",
		aim: "late vote"},
	{name: "lease ready", file: "replication/lease.go",
		old: "return l.term == term && l.ready && !l.transferred && l", new: "return l.term == term && !l.transferred && l",
		unseen: "group.leading has waited for the same flag before; TestLease"},
	{name: "lease transferred", file: "replication/lease.go",
		old: "return l.term == term && l.ready && !l.transferred && l", new: "return l.term == term && l.ready && l",
		aim: "deaf transfer"},
	{name: "lease time", file: "replication/lease.go",
		old: "l.majorityLocked(self, c, now.Add(-l.span))", new: "l.majorityLocked(self, c, time.Time{})",
		aim: "late answers"},
	{name: "ranges", file: "replication/ranges.go",
		old: "if o.first < h.end && h.first < o.end {", new: "if false && o.first < h.end && h.first < o.end {"},
	{name: "read term", file: "replication/extent/session.go",
		old: "case o.ReadTerm != 0 && o.ReadTerm != term:", new: "case false:",
		aim: "slow merge"},
	{name: "generation", file: "replication/extent/session.go",
		old: "case o.Generation < v.generation:\n\t\t// Guards I2: what an earlier", new: "case false:\n\t\t// Guards I2: what an earlier"},
	{name: "session window", file: "replication/extent/session.go",
		old: "case window.Applied(o.Seq):", new: "case false:",
		aim: "deaf transfer"},
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

var foundSeed = regexp.MustCompile(`--- FAIL: TestSchedules/seed=(\d+)|panic: (.*)`)

// TestMutants breaks the product in one place after the other, through an overlay, and wants the simulation to find a
// violation within a bounded number of schedules. Without -sim.mutants it only checks that the lines are still there.
func TestMutants(t *testing.T) {
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			path, broken := m.source(t)
			if !*mutantsFlag || !strings.Contains(m.name, *mutantFlag) {
				return
			}
			dir := t.TempDir()
			changed := filepath.Join(dir, "broken.go")
			overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600)
			}
			if err == nil {
				err = os.WriteFile(changed, []byte(broken), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			out, err := exec.CommandContext(t.Context(), "go", "test", "-overlay", filepath.Join(dir, "overlay.json"), "-count=1", "-timeout=0",
				"-run", "^TestSchedules$", ".", "-sim.from=1", "-sim.count="+*mutantSeeds, "-sim.aim="+m.aim).CombinedOutput()
			found := foundSeed.FindStringSubmatch(string(out))
			switch {
			case err != nil && found == nil:
				t.Errorf("the broken product does not build or run: %v\n%s", err, out)
			case err != nil:
				t.Logf("found at seed %s in %v", found[1]+found[2], time.Since(began).Round(time.Second))
				t.Logf("%s", firstLines(string(out), 6))
			case m.unseen == "":
				t.Errorf("not found in %s schedules, %v", *mutantSeeds, time.Since(began).Round(time.Second))
			default:
				t.Logf("not found, as expected: %s", m.unseen)
			}
		})
	}
}

func firstLines(s string, n int) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[:min(n, len(lines))], "\n")
}
