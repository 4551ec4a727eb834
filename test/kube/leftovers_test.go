//go:build kube

package kube

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// keeperGroup is where gateways' keepers move to, on every machine that has gateways.
const keeperGroup = "storaged-keeper"

// keeperGroups are those that there are now.
func keeperGroups() (list []string) {
	for _, c := range append(controllers(), "unified") {
		path := filepath.Join("/sys/fs/cgroup", c, keeperGroup)
		if _, err := os.Stat(path); err == nil {
			list = append(list, path)
		}
	}
	return list
}

// removeKeeperGroups removes those that came with the lab.
func removeKeeperGroups(before []string) (failed error) {
	for _, path := range keeperGroups() {
		if err := syscall.Rmdir(path); err != nil && !slices.Contains(before, path) {
			failed = errors.Join(failed, fmt.Errorf("remove the cgroup %s: %w", path, err))
		}
	}
	return failed
}

// leftovers returns what is on this machine of a lab in dir: namespaces, mounts, cgroups, processes, and loop devices but those of before.
func leftovers(dir string, before []string) (left error) {
	say := func(format string, args ...any) { left = errors.Join(left, fmt.Errorf(format, args...)) }
	namespaces, _ := filepath.Glob("/run/netns/" + networkPrefix + "*")
	for _, ns := range namespaces {
		say("the network namespace %s", ns)
	}
	for _, c := range append(controllers(), "unified") {
		groups, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", c, networkPrefix+"*"))
		for _, g := range groups {
			say("the cgroup %s", g)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		say("its mounts are not known: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) || strings.Contains(line, networkPrefix) {
			say("the mount %s", strings.TrimSpace(line))
		}
	}
	for _, device := range loops() {
		if !slices.Contains(before, device) {
			say("the loop device %s", device)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		arguments, _ := os.ReadFile(p + "/cmdline")
		groups, _ := os.ReadFile(p + "/cgroup")
		if mine := p == fmt.Sprintf("/proc/%d", os.Getpid()); !mine && (strings.Contains(string(arguments), dir+"/") || strings.Contains(string(groups), networkPrefix)) {
			say("the process %s: %q", filepath.Base(p), strings.ReplaceAll(string(arguments), "\x00", " "))
		}
	}
	return left
}

// TestInterrupted: a lab that is ended by ctrl-C in the middle of its start, or of a proof, leaves nothing behind.
func TestInterrupted(t *testing.T) {
	if *binFlag == "" || *repoFlag == "" {
		t.Fatal("-bin and -repo say what to run (make kube does)")
	}
	dir := filepath.Join(*binFlag, "lab")
	if err := leftovers(dir, loops()); err != nil {
		t.Fatalf("there is a lab already: %v", err)
	}
	for what, line := range map[string]string{"its start": "=== RUN   TestKube", "a proof": "=== RUN   TestKube/a_claim"} {
		before := loops()
		if err := os.RemoveAll(filepath.Join(dir, "log")); err != nil { // of the lab before
			t.Fatal(err)
		}
		child := exec.Command("/proc/self/exe", "-test.v", "-test.run", "^TestKube$/(chart_is_installed_with_its|claim_is_served)", "-bin", *binFlag, "-repo", *repoFlag)
		out, err := child.StdoutPipe()
		if err == nil {
			err = child.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		said := bufio.NewScanner(out)
		for said.Scan() && !strings.HasPrefix(said.Text(), line) {
		}
		if what == "its start" { // nodes are being made
			eventually(t, 3*time.Minute, func() error {
				_, err := os.Stat(filepath.Join(dir, "log", "node2-containerd.log"))
				return err
			})
		}
		if err := child.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		var rest strings.Builder
		for said.Scan() {
			fmt.Fprintln(&rest, said.Text())
		}
		err = child.Wait()
		if err == nil {
			t.Errorf("it was interrupted in %s, and says that all is well:\n%s", what, rest.String())
		}
		if err := leftovers(dir, before); err != nil {
			t.Errorf("interrupted in %s, it leaves:\n%v\nit said:\n%s", what, err, rest.String())
		}
	}
}
