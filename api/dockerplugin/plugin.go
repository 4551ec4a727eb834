package dockerplugin

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/hostfs"
)

// Cluster is what the plugin asks of a storaged cluster: a part of api.Cluster, which says what the methods promise.
// api/client implements it.
type Cluster interface {
	CreateVolume(ctx context.Context, v api.NewVolume) (api.Volume, error)
	Volume(ctx context.Context, name string) (api.Volume, error)
	// Volumes: a limit of 0 means all.
	Volumes(ctx context.Context, f api.VolumeFilter, after string, limit int) ([]api.Volume, error)
	DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error
}

// Config says what a Plugin works with. All fields but DefaultSizeBytes and Log are required.
type Config struct {
	Cluster Cluster
	// Devices is the host's gateway.
	Devices hostfs.Devices
	Mounts  hostfs.Mounts
	// StateDir is a directory of the plugin's own; an absolute path.
	StateDir string
	// Boot is another string each time the host's kernel has started.
	Boot string
	// DefaultSizeBytes is the size of a new volume without the option; 0: the option is required.
	DefaultSizeBytes int64
	// Log gets a line a thing that an operator may want to know of; nil discards.
	Log *slog.Logger
}

// Plugin carries out what Docker asks for. It is made by Open.
type Plugin struct {
	config  Config
	log     *slog.Logger
	records records
	locks   locks // by the volume's name in the cluster
}

// Open returns the plugin over its state directory, which it makes if it is not there.
func Open(config Config) (*Plugin, error) {
	if !filepath.IsAbs(config.StateDir) || config.Boot == "" {
		return nil, storage.E("open", storage.KindInvalid, "Docker plugin", fmt.Errorf("state directory %q is no absolute path, or the boot %q is empty",
			config.StateDir, config.Boot))
	}
	p := &Plugin{config: config, log: cmp.Or(config.Log, slog.New(slog.DiscardHandler))}
	var err error
	p.records, err = openRecords(filepath.Join(config.StateDir, "volumes"), config.Boot)
	return p, err
}

// mountpoint is where a volume of the cluster is mounted.
func (p *Plugin) mountpoint(volume string) string {
	return filepath.Join(p.config.StateDir, "mounts", volume)
}

// begin is what every call about a volume begins with: the name that Docker says is checked, the volume locked, its record
// read. A volume that is not known has a record that says only its names.
func (p *Plugin) begin(ctx context.Context, name string) (rec record, known bool, unlock func(), err error) {
	if err := checkName(name); err != nil {
		return rec, false, nil, err
	}
	volume := api.VolumeName(name)
	if unlock, err = p.locks.lock(ctx, volume); err != nil {
		return rec, false, nil, err
	}
	rec, known, err = p.records.load(volume)
	if err == nil && name != volume && rec.Name != name { // heard for the first time
		if rec.Name = name; known {
			err = p.records.save(rec)
		}
	}
	if err != nil {
		unlock()
		return rec, false, nil, err
	}
	if !known {
		rec.Volume = volume
	}
	return rec, known, unlock, nil
}

// maxNameBytes bounds names; Docker's own drivers take no longer ones.
const maxNameBytes = 255

// checkName returns an error of KindInvalid for what Docker takes for no volume's name.
func checkName(name string) error {
	fail := func(why string) error {
		return storage.E("check volume name", storage.KindInvalid, strconv.Quote(name), fmt.Errorf("%s; use 1 to %d letters, digits and _ . -, "+
			"beginning with a letter or digit", why, maxNameBytes))
	}
	if name == "" || len(name) > maxNameBytes {
		return fail(fmt.Sprintf("the name has %d characters", len(name)))
	}
	for i, c := range name {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_.-", c)) {
			return fail(fmt.Sprintf("character %q is not allowed there", c))
		}
	}
	return nil
}

// Volume is a volume as this host knows it.
type Volume struct {
	api.Volume
	// As is what Docker calls it; Name is what the cluster does.
	As string
	// Mountpoint is where it is mounted; empty: nowhere on this host.
	Mountpoint string
	// Stale: the cluster did not answer, and only As, Name, ID and Mountpoint are known.
	Stale bool
}

// Create makes the volume, or takes in the one that is there: then a size that was said must be the volume's. The options
// hold for this host; they are replaced while nobody here uses the volume. KindConflict otherwise. It may be repeated.
func (p *Plugin) Create(ctx context.Context, name string, given map[string]string) error {
	rec, known, unlock, err := p.begin(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	o, sizeBytes, err := parseOptions(rec.subject(), given)
	if err != nil {
		return err
	}
	if known && (rec.Held || len(rec.Users) > 0) {
		if err := unchanged(rec, o); err != nil {
			return err
		}
	}
	if known && rec.ID == 0 && (sizeBytes == 0 || sizeBytes == rec.SizeBytes) { // a Create that was not finished
		rec.Options = o
		return p.make(ctx, rec)
	}
	v, err := p.config.Cluster.Volume(ctx, rec.Volume)
	if err == nil {
		err = v.Before("create", rec.ID)
	}
	switch {
	case errors.Is(err, storage.ErrNotFound):
		if sizeBytes = cmp.Or(sizeBytes, p.config.DefaultSizeBytes); sizeBytes == 0 {
			return storage.E("create", storage.KindInvalid, rec.subject(), errors.New("there is none of that name; to make it, say how large: -o size=10G"))
		}
		if err := hostfs.CheckSize(o.FSType, sizeBytes); err != nil {
			return err
		}
		return p.make(ctx, record{Volume: rec.Volume, Name: rec.Name, SizeBytes: sizeBytes, RequestID: "docker-" + rand.Text(), Options: o})
	case err != nil:
		return err
	}
	if sizeBytes != 0 && sizeBytes != v.SizeBytes {
		return storage.E("create", storage.KindConflict, rec.subject(), fmt.Errorf("it is there already, with %d bytes; leave the size out to use "+
			"it, and grow it with `storagectl volume resize`", v.SizeBytes))
	}
	if !known || rec.ID != v.ID {
		rec = record{Volume: rec.Volume, Name: rec.Name}
	}
	rec.Options = o
	return p.adopt(rec, v)
}

// unchanged refuses other options than those that a volume is in use with.
func unchanged(rec record, o options) error {
	if rec.Options == o {
		return nil
	}
	return storage.E("create", storage.KindConflict, rec.subject(), fmt.Errorf("it is in use here (by %d containers) with other options; "+
		"stop them first", len(rec.Users)))
}

// make makes the volume that the record describes, under the request id that is in it.
func (p *Plugin) make(ctx context.Context, rec record) error {
	if err := p.records.save(rec); err != nil {
		return err
	}
	v, err := p.config.Cluster.CreateVolume(ctx, api.NewVolume{RequestID: rec.RequestID, Name: rec.Volume, SizeBytes: rec.SizeBytes})
	switch {
	case err == nil:
		rec.Made = true
	case errors.Is(err, storage.ErrExists): // another host was faster
		if v, err = p.config.Cluster.Volume(ctx, rec.Volume); err != nil {
			return err
		}
	default:
		return err
	}
	return p.adopt(rec, v)
}

// adopt writes down that the volume is known here.
func (p *Plugin) adopt(rec record, v api.Volume) error {
	if v.State == storage.VolumeDeleting {
		return storage.E("create", storage.KindConflict, rec.subject(), errors.New("one of that name is being deleted; try again"))
	}
	rec.ID = v.ID
	return p.records.save(rec)
}

// Remove deletes the volume with its data if this host made it, and forgets it otherwise. KindConflict while it is in use,
// here or elsewhere. One that is not known here is no error.
func (p *Plugin) Remove(ctx context.Context, name string) error {
	rec, known, unlock, err := p.begin(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	switch {
	case !known:
		return nil
	case len(rec.Users) > 0:
		return storage.E("remove", storage.KindConflict, rec.subject(), fmt.Errorf("it is in use here by %d containers", len(rec.Users)))
	case rec.Held:
		if err := p.release(ctx, &rec); err != nil {
			return err
		}
	}
	if rec.ID == 0 { // was it made? Then under this request.
		v, err := p.config.Cluster.CreateVolume(ctx, api.NewVolume{RequestID: rec.RequestID, Name: rec.Volume, SizeBytes: rec.SizeBytes})
		switch {
		case err == nil:
			rec.ID, rec.Made = v.ID, true
		case errors.Is(err, storage.ErrInvalid), errors.Is(err, storage.ErrNoSpace): // refused then, as it is now
		case !errors.Is(err, storage.ErrExists):
			return err
		}
	}
	if rec.Made {
		if err := p.config.Cluster.DeleteVolume(ctx, rec.Volume, rec.ID); err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
	}
	return p.records.drop(rec.Volume)
}

// Get returns a volume that is known here. KindNotFound for others, also for those of the cluster: Docker then calls
// Create, with the options that hold for this host. Without the cluster's answer the volume is Stale.
func (p *Plugin) Get(ctx context.Context, name string) (Volume, error) {
	rec, known, unlock, err := p.begin(ctx, name)
	if err != nil {
		return Volume{}, err
	}
	unlock()
	if !known || rec.ID == 0 {
		return Volume{}, unknown("look up", rec)
	}
	v, err := p.config.Cluster.Volume(ctx, rec.Volume)
	if err == nil {
		err = v.Before("look up", rec.ID)
	}
	switch {
	case errors.Is(err, storage.ErrUnavailable):
		return p.stale(rec, name), nil
	case errors.Is(err, storage.ErrNotFound), err == nil && v.ID != rec.ID:
		return Volume{}, unknown("look up", rec)
	case err != nil:
		return Volume{}, err
	}
	return Volume{Volume: v, As: name, Mountpoint: p.shown(rec)}, nil
}

func unknown(op string, rec record) error {
	return storage.E(op, storage.KindNotFound, rec.subject(), errors.New("it is not known on this host; `docker volume create -d` "+
		"makes it, or takes it in"))
}

// List returns the volumes that Get would return, in the order of the cluster's names. Each is called as Docker has called
// it here.
func (p *Plugin) List(ctx context.Context) ([]Volume, error) {
	names, err := p.records.names()
	if err != nil {
		return nil, err
	}
	there := map[string]api.Volume{}
	volumes, clusterErr := p.config.Cluster.Volumes(ctx, api.VolumeFilter{}, "", 0)
	if clusterErr != nil && !errors.Is(clusterErr, storage.ErrUnavailable) {
		return nil, clusterErr
	}
	for _, v := range volumes {
		there[v.Name] = v
	}
	var list []Volume
	for _, name := range names {
		rec, known, err := p.records.load(name) // as it was saved last, and not while it changes: files are replaced as a whole
		switch {
		case err != nil:
			return nil, err
		case !known || rec.ID == 0:
		case clusterErr != nil:
			list = append(list, p.stale(rec, rec.as()))
		case there[name].ID == rec.ID:
			list = append(list, Volume{Volume: there[name], As: rec.as(), Mountpoint: p.shown(rec)})
		}
	}
	return list, nil
}

// Path returns where the volume is mounted on this host; empty: nowhere.
func (p *Plugin) Path(ctx context.Context, name string) (string, error) {
	rec, _, unlock, err := p.begin(ctx, name)
	if err != nil {
		return "", err
	}
	unlock()
	return p.shown(rec), nil
}

func (p *Plugin) stale(rec record, as string) Volume {
	return Volume{Volume: api.Volume{Volume: storage.Volume{Name: rec.Volume, ID: rec.ID}}, As: as, Mountpoint: p.shown(rec), Stale: true}
}

// shown is the mountpoint of a volume that has users.
func (p *Plugin) shown(rec record) string {
	if len(rec.Users) == 0 {
		return ""
	}
	return p.mountpoint(rec.Volume)
}
