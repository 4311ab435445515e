// Package cgroups makes cgroups of version 1 or 2 for a program's children: those of a node's pods, and of an injector whose memory is limited. It
// needs root, and removes what processes that have died left behind.
package cgroups

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// prefix is how the names of all groups begin.
const prefix = "akv-injector-test-"

// NewName returns a name that no other group has, not even one of a process with the same id in another container.
func NewName() string {
	return fmt.Sprintf("%s%d-%08x", prefix, os.Getpid(), rand.Uint32())
}

// Group is a cgroup. Its maker must remove it.
type Group struct {
	hierarchies

	name   string
	remove func() error
}

// Remove removes the cgroup, with all cgroups inside. Their processes must have ended.
func (g *Group) Remove() error { return g.remove() }

// LimitMemory limits the memory of all processes in the group: the kernel kills one that goes beyond it.
func (g *Group) LimitMemory(bytes int64) error {
	if err := g.write("memory", []string{"memory.limit_in_bytes", "memory.max"}, bytes); err != nil {
		return fmt.Errorf("limit the memory of cgroup %s: %w", g.name, err)
	}
	return nil
}

// Add moves a process into the group. Memory that it uses already counts where it was before.
func (g *Group) Add(pid int) error {
	if err := g.write("process", []string{"cgroup.procs"}, int64(pid)); err != nil {
		return fmt.Errorf("add process %d to cgroup %s: %w", pid, g.name, err)
	}
	return nil
}

// write writes a number to whichever of the files exist: version 1 has some in one hierarchy only, under another name.
func (g *Group) write(what string, files []string, number int64) error {
	found := false
	for _, folder := range g.folders {
		for _, file := range files {
			path := filepath.Join(folder, g.name, file)
			if _, err := os.Stat(path); err != nil {
				continue
			}
			found = true
			if err := os.WriteFile(path, strconv.AppendInt(nil, number, 10), 0o644); err != nil {
				return err
			}
		}
	}
	if !found {
		return fmt.Errorf("there is no setting of %s", what)
	}
	return nil
}

// controllers are those that kubelet can't do without.
var controllers = []string{"cpu", "cpuset", "memory", "pids"}

// hierarchies are where cgroups are made: the folders of version 1, one for each set of controllers, or that of version 2 alone.
type hierarchies struct {
	folders []string
	unified bool // it is version 2
}

// findHierarchies returns those that this machine has mounted.
func findHierarchies() (found hierarchies, err error) {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return hierarchies{}, fmt.Errorf("find cgroups: %w", err)
	}
	defer mounts.Close()
	var known []string
	lines := bufio.NewScanner(mounts)
	for lines.Scan() && !found.unified {
		fields := strings.Fields(lines.Text()) // device, folder, file system, options
		if len(fields) < 4 || !strings.HasPrefix(fields[1], "/sys/fs/cgroup") || !strings.HasPrefix(fields[2], "cgroup") {
			continue
		}
		// Version 2 is what runs unless it is only mounted beside version 1; even there, runc makes a cgroup.
		if found.unified = fields[1] == "/sys/fs/cgroup"; found.unified {
			found.folders = nil
		}
		found.folders = append(found.folders, fields[1])
		known = append(known, strings.Split(fields[3], ",")...)
	}
	if err := lines.Err(); err != nil {
		return hierarchies{}, fmt.Errorf("find cgroups: %w", err)
	}
	if found.unified {
		if known, err = words(found.folders[0], "cgroup.controllers"); err != nil {
			return hierarchies{}, fmt.Errorf("find cgroups: %w", err)
		}
	}
	for _, controller := range controllers {
		if !slices.Contains(known, controller) {
			return hierarchies{}, fmt.Errorf("find cgroups: no controller %s is mounted below /sys/fs/cgroup", controller)
		}
	}
	return found, nil
}

// Make makes a group with a name of [NewName]. It removes groups whose makers died before they could.
func Make(name string) (_ *Group, err error) {
	found, err := findHierarchies()
	if err != nil {
		return nil, err
	}
	// One maker at a time, so that none takes what another has just made for what a dead one has left.
	making, err := lock(found.folders[0], syscall.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	defer making.Close()
	found.sweep()

	var steps []func() error
	undo := func() error {
		var errs []error
		for _, step := range slices.Backward(steps) {
			errs = append(errs, step())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make cgroup: %w", err), undo())
		}
	}()
	if found.unified {
		takeBack, err := passOn(found.folders[0])
		steps = append(steps, takeBack)
		if err != nil {
			return nil, err
		}
	}
	for _, folder := range found.folders {
		made := filepath.Join(folder, name)
		if err := os.Mkdir(made, 0o755); err != nil {
			return nil, err
		}
		steps = append(steps, func() error { return removeCgroup(made, 5*time.Second) })
		// A child of version 1's cpuset may have processes only when its parent says where they may run.
		for _, setting := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(folder, setting))
			if err != nil {
				continue // this isn't cpuset, or it is version 2, which has it all by itself
			}
			if err := os.WriteFile(filepath.Join(made, setting), value, 0o644); err != nil {
				return nil, err
			}
		}
	}
	// It ends with this process at the latest.
	owned, err := lock(filepath.Join(found.folders[0], name), syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	steps = append(steps, owned.Close)
	return &Group{hierarchies: found, name: name, remove: func() error {
		// A group that is made meanwhile would miss the controllers that are taken back.
		making, err := lock(found.folders[0], syscall.LOCK_EX)
		if err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		defer making.Close()
		return undo()
	}}, nil
}

// passOn has a cgroup of version 2 pass all controllers on to its children, as kubelet asks for and the runtime does in any case. It
// returns what takes back those that it did not pass on before.
func passOn(folder string) (takeBack func() error, err error) {
	takeBack = func() error { return nil }
	known, err := words(folder, "cgroup.controllers")
	if err != nil {
		return takeBack, err
	}
	passed, err := words(folder, "cgroup.subtree_control")
	if err != nil {
		return takeBack, err
	}
	added := slices.DeleteFunc(known, func(c string) bool { return slices.Contains(passed, c) })
	set := func(sign, controller string) error {
		return os.WriteFile(filepath.Join(folder, "cgroup.subtree_control"), []byte(sign+controller), 0o644)
	}
	takeBack = func() error {
		if others, err := filepath.Glob(filepath.Join(folder, prefix+"*")); err != nil || len(others) > 0 {
			return err // another machine needs them
		}
		for _, controller := range added {
			_ = set("-", controller) // or else somebody needs it by now
		}
		return nil
	}
	for _, controller := range added {
		if err := set("+", controller); err != nil && slices.Contains(controllers, controller) {
			// As where a container has a root of cgroups to itself, and its processes in there.
			return takeBack, fmt.Errorf("pass controller %s on (only where no processes are in %s itself can it be): %w", controller, folder, err)
		}
	}
	return takeBack, nil
}

// sweep removes the cgroups of machines whose makers are dead. That some can't be removed yet is no reason to do without a new one.
func (h hierarchies) sweep() {
	left, err := filepath.Glob(filepath.Join(h.folders[0], prefix+"*"))
	if err != nil {
		return
	}
	for _, folder := range left {
		owned, err := lock(folder, syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			continue
		}
		// The first one last: it is what the others are found by.
		for _, hierarchy := range slices.Backward(h.folders) {
			_ = removeCgroup(filepath.Join(hierarchy, filepath.Base(folder)), 0)
		}
		_ = owned.Close()
	}
}

// lock locks a folder until it is closed.
func lock(folder string, how int) (*os.File, error) {
	opened, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(opened.Fd()), how); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", folder, err), opened.Close())
	}
	return opened, nil
}

// removeCgroup removes a cgroup, children first. Their processes are dead, but the kernel may need some patience to bury them all.
func removeCgroup(root string, patience time.Duration) error {
	var folders []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			folders = append(folders, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	deadline := time.Now().Add(patience)
	for at := len(folders) - 1; at >= 0 && err == nil; at-- {
		err = os.Remove(folders[at])
		for err != nil && !errors.Is(err, fs.ErrNotExist) && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
			err = os.Remove(folders[at])
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // somebody has swept
		}
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}

// words are those of a cgroup's file.
func words(folder, file string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(folder, file))
	return strings.Fields(string(text)), err
}
