package hostgateway

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/storaged/storaged/nbd/attach"
)

// udevDevice is what udev knows of a device, and then what the rules have made of it.
type udevDevice struct {
	action, subsystem, kernel string
	attrs, env                map[string]string
	parent                    *udevDevice

	program     string // what the last PROGRAM said
	links, tags []string
}

// TestUdevRules runs the rules of deploy/udev on devices as the gateway makes them, and on others.
func TestUdevRules(t *testing.T) {
	rules := readUdevRules(t, "../../deploy/udev/61-storaged.rules")
	field, _ := reflect.TypeFor[Config]().FieldByName("StateDir")
	file := attach.FUSEFile((&state{dir: field.Tag.Get("default")}).mountDir(), "web")
	loop := func(file string) *udevDevice { // of a kernel that has no numbers of devices
		return &udevDevice{kernel: "loop3", attrs: map[string]string{"loop/backing_file": file}}
	}
	settled := func(sequence string) *udevDevice {
		return &udevDevice{kernel: "loop3", attrs: map[string]string{"loop/backing_file": "/disk", "diskseq": sequence}}
	}
	field, _ = reflect.TypeFor[Config]().FieldByName("Socket")
	g := &Gateway{config: Config{Socket: field.Tag.Get("default")}}
	names := g.namesDir()
	g.config.Socket, g.config.LinkDir = filepath.Join(t.TempDir(), "gateway.sock"), t.TempDir()
	g.link("web", "/dev/loop3", 41)
	g.link("gone", "/dev/loop4", 42)
	g.unname(42)
	for _, rule := range rules {
		for i := range rule {
			rule[i].value = strings.ReplaceAll(rule[i].value, names+"/", g.namesDir()+"/")
		}
	}
	nbd := func(attrs ...string) *udevDevice {
		d := &udevDevice{kernel: "nbd12", attrs: map[string]string{}}
		for i := 0; i < len(attrs); i += 2 {
			d.attrs[attrs[i]] = attrs[i+1]
		}
		return d
	}
	ours := nbd("pid", "77", "backend", attach.NBDBackend("web"))
	for name, c := range map[string]struct {
		d       *udevDevice
		content string // what the rules before ours have found on it
		link    string // "": it is none of ours
		hidden  bool
		becomes string // the content, for the rules after ours; "": as it was
	}{
		"FUSE and loop":               {d: loop(file), link: "storaged/web", hidden: true},
		"FUSE and loop, settled":      {d: settled("41"), link: "storaged/web", hidden: true},
		"another loop device":         {d: loop("/srv/images/mnt/web/disk")},
		"another's /disk":             {d: settled("7")},
		"one that was detached":       {d: settled("42")},
		"a file beside the disk":      {d: loop(file + "2")},
		"kernel NBD":                  {d: ours, link: "storaged/web", hidden: true},
		"kernel NBD, disconnected":    {d: nbd("backend", attach.NBDBackend("web"))},
		"kernel NBD, another's":       {d: nbd("pid", "77", "backend", "qemu/web")},
		"kernel NBD, without a name":  {d: nbd("pid", "77")},
		"a partition":                 {d: &udevDevice{kernel: "nbd12p1", env: map[string]string{"DEVTYPE": "partition"}, parent: ours}, hidden: true},
		"another's partition":         {d: &udevDevice{kernel: "sda1", env: map[string]string{"DEVTYPE": "partition"}, parent: nbd("pid", "1")}},
		"a volume group's member":     {d: loop(file), content: "LVM2_member", link: "storaged/web", hidden: true, becomes: "storaged_LVM2_member"},
		"an array's member":           {d: ours, content: "linux_raid_member", link: "storaged/web", hidden: true, becomes: "storaged_linux_raid_member"},
		"a file system":               {d: loop(file), content: "ext4", link: "storaged/web", hidden: true},
		"another's volume group":      {d: nbd("pid", "77"), content: "LVM2_member"},
		"a device that goes":          {d: &udevDevice{action: "remove", kernel: "loop3", attrs: loop(file).attrs}},
		"something that is no device": {d: &udevDevice{subsystem: "net", kernel: "loop3", attrs: loop(file).attrs}},
	} {
		t.Run(name, func(t *testing.T) {
			d := c.d.fresh(c.content)
			runUdev(t, rules, d)
			var links, tags []string
			if c.link != "" {
				links, tags = []string{c.link}, []string{"systemd"}
			}
			if !slices.Equal(d.links, links) || !slices.Equal(d.tags, tags) {
				t.Errorf("links %q, tags %q; want %q, %q", d.links, d.tags, links, tags)
			}
			if (d.env["UDISKS_IGNORE"] == "1") != c.hidden {
				t.Errorf("hidden from desktops: %v, want %v", !c.hidden, c.hidden)
			}
			if want := c.becomes; d.env["ID_FS_TYPE"] != want && (want != "" || d.env["ID_FS_TYPE"] != c.content) {
				t.Errorf("its content is %q afterwards, want %q", d.env["ID_FS_TYPE"], want)
			}
		})
	}
}

// fresh is the device as it comes to the rules.
func (d *udevDevice) fresh(content string) *udevDevice {
	f := &udevDevice{action: d.action, subsystem: d.subsystem, kernel: d.kernel, attrs: d.attrs, parent: d.parent,
		env: map[string]string{"DEVTYPE": "disk"}}
	maps.Copy(f.env, d.env)
	if content != "" {
		f.env["ID_FS_TYPE"] = content
	}
	if f.action == "" {
		f.action = "change"
	}
	if f.subsystem == "" {
		f.subsystem = "block"
	}
	return f
}

// udevItem is one KEY{of}op"value" of a rule.
type udevItem struct{ key, of, op, value string }

func (i udevItem) matches() bool { return i.op == "==" || i.op == "!=" || i.key == "PROGRAM" }

func readUdevRules(t *testing.T, path string) (rules [][]udevItem) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	item := regexp.MustCompile(`^([A-Z]+)(?:\{([^}]+)\})?(==|!=|\+=|=)"([^"]*)"(?:,\s*)?`)
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", "")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var rule []udevItem
		for line != "" {
			m := item.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("%s: cannot read %s", path, line)
			}
			rule = append(rule, udevItem{m[1], m[2], m[3], m[4]})
			line = line[len(m[0]):]
		}
		rules = append(rules, rule)
	}
	return rules
}

// runUdev does what udev does with the rules, as far as they go: see udev(7).
func runUdev(t *testing.T, rules [][]udevItem, d *udevDevice) {
	t.Helper()
	skipTo := ""
	for _, rule := range rules {
		if skipTo != "" {
			if slices.Contains(rule, udevItem{"LABEL", "", "=", skipTo}) {
				skipTo = ""
			}
			continue
		}
		if !d.matchesAll(t, rule) {
			continue
		}
		for _, i := range rule {
			if i.matches() {
				continue
			}
			switch value := d.substitute(i.value); i.key + i.op {
			case "SYMLINK+=":
				d.links = append(d.links, value)
			case "TAG+=":
				d.tags = append(d.tags, value)
			case "ENV=":
				d.env[i.of] = value
			case "GOTO=":
				skipTo = value
			case "LABEL=":
			default:
				t.Fatalf("this test does not know %s%s", i.key, i.op)
			}
		}
	}
	if skipTo != "" {
		t.Errorf("there is no label %s", skipTo)
	}
}

// matchesAll reports whether every condition of a rule holds. Those of the parents must hold for one of them.
func (d *udevDevice) matchesAll(t *testing.T, rule []udevItem) bool {
	t.Helper()
	var parents []udevItem
	for _, i := range rule {
		if !i.matches() {
			continue
		}
		is, ok := "", true
		switch i.key {
		case "ACTION":
			is = d.action
		case "SUBSYSTEM":
			is = d.subsystem
		case "KERNEL":
			is = d.kernel
		case "ENV":
			is = d.env[i.of]
		case "ATTR":
			is, ok = d.attrs[i.of]
		case "TEST":
			_, ok = d.attrs[i.value]
			is = i.value
		case "PROGRAM":
			ok = d.run(d.substitute(i.value))
			is = i.value
		case "SUBSYSTEMS", "ATTRS":
			parents = append(parents, i)
			continue
		default:
			t.Fatalf("this test does not know %s%s", i.key, i.op)
		}
		if !ok || i.key != "PROGRAM" && udevGlob(i.value, is) != (i.op == "==") {
			return false
		}
	}
	for p := d; p != nil && len(parents) > 0; p = p.parent {
		if !slices.ContainsFunc(parents, func(i udevItem) bool {
			is, ok := p.attrs[i.of]
			if i.key == "SUBSYSTEMS" {
				is, ok = "block", true
			}
			return !ok || udevGlob(i.value, is) != (i.op == "==")
		}) {
			return true
		}
	}
	return len(parents) == 0
}

// udevGlob matches as fnmatch(3) does without FNM_PATHNAME; | separates alternatives.
func udevGlob(pattern, s string) bool {
	p := strings.NewReplacer(`\?`, ".", `\*`, ".*", `\|`, "|").Replace(regexp.QuoteMeta(pattern))
	return regexp.MustCompile("^(?:" + p + ")$").MatchString(s)
}

func (d *udevDevice) substitute(s string) string {
	return regexp.MustCompile(`\$\$|%%|%c|\$(?:attr|env)\{[^}]*\}`).ReplaceAllStringFunc(s, func(m string) string {
		name := strings.TrimSuffix(m[strings.IndexByte(m, '{')+1:], "}")
		switch {
		case m == "$$" || m == "%%":
			return m[:1]
		case m == "%c":
			return d.program
		case strings.HasPrefix(m, "$attr"):
			return d.attrs[name]
		}
		return d.env[name]
	})
}

// run splits a command as udev does, runs it, and keeps what it says.
func (d *udevDevice) run(command string) bool {
	var args []string
	for _, m := range regexp.MustCompile(`'([^']*)'|(\S+)`).FindAllStringSubmatch(command, -1) {
		args = append(args, m[1]+m[2])
	}
	out, err := exec.Command(filepath.Clean(args[0]), args[1:]...).Output()
	d.program = strings.TrimSpace(string(out))
	return err == nil
}
