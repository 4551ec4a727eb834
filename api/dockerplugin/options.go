package dockerplugin

import (
	"errors"
	"maps"
	"slices"
	"strconv"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/size"
)

// options are those of `docker volume create -o`, but for the size, which is the volume's and not this host's.
type options struct {
	Access   storage.Access `json:"access"`
	ReadOnly bool           `json:"readOnly,omitempty"`
	// FSType is the file system that a blank volume gets; empty: ext4, and any is accepted that is there.
	FSType   string `json:"fsType,omitempty"`
	TakeOver bool   `json:"takeOver,omitempty"`
}

// request is what Mount asks the gateway for.
func (o options) request(volume string) host.Request {
	return host.Request{Volume: volume, Access: o.Access, ReadOnly: o.ReadOnly, TakeOver: o.TakeOver}
}

// parseOptions reads the options of the volume that subject names; sizeBytes is 0 when none was said. It returns every problem at once.
func parseOptions(subject string, given map[string]string) (o options, sizeBytes int64, err error) {
	o.Access = storage.AccessExclusive
	var p storage.Problems
	for _, key := range slices.Sorted(maps.Keys(given)) {
		value, err := given[key], error(nil)
		switch key {
		case "size":
			var b size.Bytes
			if b, err = size.Parse(value); err == nil {
				sizeBytes = int64(b)
				err = storage.CheckVolumeSize(sizeBytes)
			}
		case "access":
			if o.Access = storage.Access(value); !o.Access.Valid() {
				err = errors.New("use exclusive or readers")
			}
		case "fs":
			if o.FSType = value; value != "ext4" && value != "xfs" {
				err = errors.New("use ext4 or xfs")
			}
		case "read_only":
			o.ReadOnly, err = parseBool(value)
		case "take_over":
			o.TakeOver, err = parseBool(value)
		default:
			err = errors.New("there is no such option; use size, access, fs, read_only or take_over")
		}
		p.Check(err == nil, "option %s=%s: %w", key, value, err)
	}
	switch {
	case o.Access == storage.AccessShared && !o.ReadOnly:
		p.Add(errors.New("option access=shared: ext4 and xfs are destroyed when a second host mounts them for " +
			"writing; use access=readers"))
	case o.Access == storage.AccessShared: // what several hosts mount, nobody may write to
		o.Access = storage.AccessReaders
	}
	o.ReadOnly = o.ReadOnly || o.Access == storage.AccessReaders
	return o, sizeBytes, p.Err("create", subject)
}

// parseBool is strconv.ParseBool with an error that says what to do.
func parseBool(value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, errors.New("use true or false")
	}
	return b, nil
}
