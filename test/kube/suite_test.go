//go:build kube

package kube

import (
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// part is a part of the suite that runs beside the others.
type part struct {
	name, class string
	focus, skip string // regular expressions
}

// External is how the suite calls its tests of drivers that it is told of; unwanted are those that are not for every cluster.
const (
	external = `External.Storage`
	unwanted = `\[Disruptive\]|\[Slow\]|\[Feature:`
	growth   = `volume-expand|expansion`
	subPath  = `subPath`
	pods     = `ephemeral|fsgroupchangepolicy`
)

// impossible are tests that the lab cannot have, and why: regular expressions.
var impossible = map[string]string{
	`any volume data source`: "they run a populator and a validator of claims in images that nobody here builds; no call of theirs reaches a driver",
}

// suite runs Kubernetes' tests of external drivers, those for what driver.yaml claims, and says of each that was not run why.
func (c *cluster) suite(t *testing.T) {
	class := "storaged"
	if !mayGrowExt4() {
		class = "storaged-xfs"
		fmt.Printf("    the tests of growth run on xfs: this machine has no CAP_SYS_RESOURCE, which the kernel asks of who grows a mounted ext4\n")
	}
	skip := unwanted
	for tests, why := range impossible {
		fmt.Printf("    left out: %q: %s\n", tests, why)
		skip += `|` + tests
	}
	parts := []part{
		{"growth", class, external + `.*(` + growth + `)`, skip},
		{"subpath", "storaged", external + `.*` + subPath, skip + `|` + growth},
		{"pods", "storaged", external + `.*(` + pods + `)`, skip + `|` + growth + `|` + subPath},
		{"others", "storaged", external, skip + `|` + growth + `|` + subPath + `|` + pods},
	}
	var all errgroup.Group
	for _, p := range parts {
		all.Go(func() error { return c.runPart(p) })
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	counts := map[string]int{}
	skipped := map[string]int{}
	for _, p := range parts {
		if err := c.report(p, counts, skipped); err != nil {
			t.Error(err)
		}
	}
	fmt.Printf("    figure: the suite of external storage: %d passed, %d failed\n", counts["passed"], counts["failed"])
	for why, n := range skipped {
		fmt.Printf("    %d not run: %s\n", n, why)
	}
	if counts["passed"] == 0 || counts["failed"] > 0 {
		t.Errorf("%d passed, %d failed", counts["passed"], counts["failed"])
	}
}

func (c *cluster) runPart(p part) error {
	text, err := os.ReadFile(filepath.Join(c.repo, "test/kube/driver.yaml"))
	driver, log := filepath.Join(c.dir, p.name+"-driver.yaml"), filepath.Join(c.dir, "log", "suite-"+p.name+".log")
	if err = errors.Join(err, os.WriteFile(driver, []byte(strings.ReplaceAll(string(text), "CLASS", p.class)), 0o600)); err != nil {
		return err
	}
	if _, err = c.shell(fmt.Sprintf("e2e.test --kubeconfig=$KUBECONFIG --provider=local --num-nodes=%d --storage.testdriver=%s '--ginkgo.focus=%s' "+
		"'--ginkgo.skip=%s' --ginkgo.timeout=60m --ginkgo.no-color --ginkgo.v --ginkgo.junit-report=%s >%s 2>&1", nodeCount, driver, p.focus, p.skip, c.junit(p), log)); err != nil {
		err = fmt.Errorf("%s of the suite: %w; all that it says is in %s", p.name, err, log)
	}
	return err
}

func (c *cluster) junit(p part) string { return filepath.Join(c.dir, "log", "suite-"+p.name+".xml") }

// report counts the tests of a part by how they ended, and those that were not run by their reason.
func (c *cluster) report(p part, counts, skipped map[string]int) error {
	text, err := os.ReadFile(c.junit(p))
	if err != nil {
		return err
	}
	var suites struct {
		Cases []struct {
			Name    string `xml:"name,attr"`
			Status  string `xml:"status,attr"`
			Skipped *struct {
				Message string `xml:"message,attr"`
			} `xml:"skipped"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(text, &suites); err != nil {
		return err
	}
	for _, test := range suites.Cases {
		name, ours := strings.CutPrefix(test.Name, "[It] External Storage [Driver: csi.storaged.io] ")
		switch {
		case !ours:
		case test.Status == "passed":
			counts["passed"]++
		case test.Skipped != nil && test.Skipped.Message == "skipped": // another part's, or of no part
		case test.Skipped != nil:
			reason, _, _ := strings.Cut(test.Skipped.Message, "\n")
			skipped[reason]++
		default:
			counts["failed"]++
			fmt.Printf("    %s: %s\n", test.Status, name)
		}
	}
	return nil
}

// mayGrowExt4 reports whether this machine lets its root grow a mounted ext4.
func mayGrowExt4() bool {
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	return err == nil && has == 1
}
