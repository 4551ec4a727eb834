package storage

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The bounds of labels.
const (
	// MaxLabels bounds the labels of one volume, those that one change removes, and those that one selector names.
	MaxLabels = 64
	// MaxLabelsBytes bounds the keys and values of one volume together: with the labels of all volumes, a snapshot of the
	// catalog stays below its bound.
	MaxLabelsBytes      = 4 << 10
	maxLabelPrefixBytes = 253
	maxLabelTextBytes   = 63
)

// CheckLabels returns an error of KindInvalid unless a volume may have these labels. Their form is that of Kubernetes': a key is
// a name, or a DNS name, "/" and a name; a value is as a name is, or empty.
func CheckLabels(labels map[string]string) error {
	total := 0
	for _, key := range slices.Sorted(maps.Keys(labels)) { // of several that are wrong the same one is told each time
		if err := checkLabelKey(key); err != nil {
			return err
		}
		if value := labels[key]; value != "" && !isLabelText(value) {
			return badLabels("label %q cannot have the value %q; %s, or nothing", key, value, labelForm)
		}
		total += len(key) + len(labels[key])
	}
	if len(labels) > MaxLabels || total > MaxLabelsBytes {
		return badLabels("the volume would have %d labels of %d bytes; use at most %d of %d bytes together, and remove some first",
			len(labels), total, MaxLabels, MaxLabelsBytes)
	}
	return nil
}

func checkLabelKey(key string) error {
	prefix, name, prefixed := strings.Cut(key, "/")
	if !prefixed {
		prefix, name = "", key
	}
	if prefixed && !isDNSName(prefix) {
		return badLabels("label %q: before the slash belongs a DNS name of at most %d lower-case letters, digits, hyphens and dots",
			key, maxLabelPrefixBytes)
	}
	if !isLabelText(name) {
		return badLabels("label %q: its name cannot be %q; %s", key, name, labelForm)
	}
	return nil
}

func badLabels(format string, args ...any) error {
	return E("check labels", KindInvalid, "", fmt.Errorf(format, args...))
}

// labelForm says what isLabelText wants.
const labelForm = "use 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"

// isLabelText reports whether s is the name in a label's key, or a value that is not empty.
func isLabelText(s string) bool {
	odd := func(r rune) bool { return !isAlphanumeric(r) && !strings.ContainsRune("-_.", r) }
	return s != "" && len(s) <= maxLabelTextBytes && !strings.ContainsFunc(s, odd) && isAlphanumeric(rune(s[0])) && isAlphanumeric(rune(s[len(s)-1]))
}

func isAlphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// isDNSName reports whether s is a DNS subdomain (RFC 1123).
func isDNSName(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if CheckVolumeName(label) != nil { // which is a DNS label too
			return false
		}
	}
	return len(s) <= maxLabelPrefixBytes
}

// LabelChange sets labels of a volume and removes others; the rest stays.
type LabelChange struct {
	Set    map[string]string `json:"set,omitempty"`
	Remove []string          `json:"remove,omitempty"` // keys; one that the volume does not have is no error
}

// IsZero reports whether nothing is changed.
func (c LabelChange) IsZero() bool { return len(c.Set) == 0 && len(c.Remove) == 0 }

// Of returns the labels with the change.
func (c LabelChange) Of(labels map[string]string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, c.Set)
	for _, key := range c.Remove {
		delete(out, key)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// Check returns an error of KindInvalid unless the change may be made to some volume.
func (c LabelChange) Check() error {
	if len(c.Remove) > MaxLabels {
		return badLabels("%d labels are to be removed; at most %d can be at once", len(c.Remove), MaxLabels)
	}
	for _, key := range c.Remove {
		if err := checkLabelKey(key); err != nil {
			return err
		}
		if _, set := c.Set[key]; set {
			return badLabels("label %q is to be both set and removed; say which", key)
		}
	}
	return CheckLabels(c.Set)
}

// LabelSelector chooses volumes by their labels. An element is "KEY=VALUE", or "KEY" for any value; a volume has all of them.
type LabelSelector []string

// Matches reports whether a volume of these labels is chosen.
func (s LabelSelector) Matches(labels map[string]string) bool {
	return !slices.ContainsFunc(s, func(element string) bool {
		key, value, exact := strings.Cut(element, "=")
		has, ok := labels[key]
		return !ok || exact && has != value
	})
}

// Check returns an error of KindInvalid unless the selector is of the right form.
func (s LabelSelector) Check() error {
	if len(s) > MaxLabels {
		return badLabels("%d labels are asked for; at most %d can be", len(s), MaxLabels)
	}
	for _, element := range s {
		key, value, _ := strings.Cut(element, "=")
		if err := CheckLabels(map[string]string{key: value}); err != nil {
			return err
		}
	}
	return nil
}

// ParseLabels reads labels, each as "KEY=VALUE".
func ParseLabels(texts []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, badLabels("label %q has no value; write KEY=VALUE", text)
		}
		if before, set := labels[key]; set && before != value {
			return nil, badLabels("label %q is given twice, with the values %q and %q; say which", key, before, value)
		}
		labels[key] = value
	}
	return labels, CheckLabels(labels)
}
