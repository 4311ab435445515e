// Package cgroups creates cgroups of version 1 or 2: for the pods of a node, and for an injector
// with a memory limit.
//
//	group, err := cgroups.Make(cgroups.NewName())
//	defer group.Remove()
//	err = group.LimitMemory(512 << 20)
//	err = group.Add(pid)
//
// It needs Linux and root. It also removes the cgroups of processes that died before they could
// remove them.
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

// prefix is the prefix of the names of all groups.
const prefix = "akv-injector-test-"

// NewName returns a unique name, even if a process in another container has the same process ID.
func NewName() string {
	return fmt.Sprintf("%s%d-%08x", prefix, os.Getpid(), rand.Uint32())
}

// Group is a cgroup. The caller of [Make] must remove it.
type Group struct {
	hierarchies

	name   string
	remove func() error
}

// Remove removes the cgroup and all cgroups in it. Their processes must have ended.
func (g *Group) Remove() error { return g.remove() }

// LimitMemory limits the memory of all processes in the group together. The kernel kills a process
// if the group exceeds the limit.
func (g *Group) LimitMemory(bytes int64) error {
	if err := g.write("memory", []string{"memory.limit_in_bytes", "memory.max"}, bytes); err != nil {
		return fmt.Errorf("limit the memory of cgroup %s: %w", g.name, err)
	}
	return nil
}

// Add moves a process into the group. Memory that the process already uses is still counted in its
// previous group.
func (g *Group) Add(pid int) error {
	if err := g.write("process", []string{"cgroup.procs"}, int64(pid)); err != nil {
		return fmt.Errorf("add process %d to cgroup %s: %w", pid, g.name, err)
	}
	return nil
}

// write writes a number to those of the files that exist. In version 1 a file exists in one
// hierarchy only and has another name than in version 2.
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
		return fmt.Errorf("no file sets the %s", what)
	}
	return nil
}

// controllers are the controllers that the kubelet requires.
var controllers = []string{"cpu", "cpuset", "memory", "pids"}

// hierarchies are the folders in which cgroups are created: in version 1 one folder for each set of
// controllers, in version 2 a single folder.
type hierarchies struct {
	folders []string
	unified bool // it is version 2
}

// findHierarchies returns the hierarchies that this machine has mounted.
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
		// Version 2 is in use unless it is only mounted in a subfolder of version 1. runc
		// creates a cgroup even there.
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

// Make creates a group with a name from [NewName]. It first removes groups whose owners died before
// they could remove them.
func Make(name string) (_ *Group, err error) {
	found, err := findHierarchies()
	if err != nil {
		return nil, err
	}
	// The lock keeps other processes from removing a group that this process has just created.
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
		// In version 1, a new cgroup of the controller cpuset accepts processes only when these
		// settings are not empty.
		for _, setting := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(folder, setting))
			if err != nil {
				continue // not the controller cpuset, or version 2, which sets a default
			}
			if err := os.WriteFile(filepath.Join(made, setting), value, 0o644); err != nil {
				return nil, err
			}
		}
	}
	// The lock ends with this process at the latest.
	owned, err := lock(filepath.Join(found.folders[0], name), syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	steps = append(steps, owned.Close)
	return &Group{hierarchies: found, name: name, remove: func() error {
		// A group that another process creates meanwhile would miss the controllers that are
		// disabled.
		making, err := lock(found.folders[0], syscall.LOCK_EX)
		if err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		defer making.Close()
		return undo()
	}}, nil
}

// passOn enables all controllers for the children of a cgroup of version 2. The kubelet requires
// this, and the container runtime does it anyway. passOn returns a function that disables those
// controllers that were not enabled before.
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
			return err // another group needs the controllers
		}
		for _, controller := range added {
			_ = set("-", controller) // it fails if another cgroup uses the controller by now
		}
		return nil
	}
	for _, controller := range added {
		if err := set("+", controller); err != nil && slices.Contains(controllers, controller) {
			// For example in a container that has its own cgroup namespace, with its
			// processes in the root.
			return takeBack, fmt.Errorf("enable controller %s (which is possible only if no process is in %s itself): %w", controller, folder, err)
		}
	}
	return takeBack, nil
}

// sweep removes the cgroups whose owners are dead. It ignores errors, because a leftover cgroup
// does not prevent a new one.
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
		// The first hierarchy is last, because sweep finds the cgroups in it.
		for _, hierarchy := range slices.Backward(h.folders) {
			_ = removeCgroup(filepath.Join(hierarchy, filepath.Base(folder)), 0)
		}
		_ = owned.Close()
	}
}

// lock locks a folder until the returned file is closed.
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

// removeCgroup removes a cgroup and its children. Their processes are dead, but the kernel may need
// some time to remove them, at most patience.
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
			err = nil // another process has removed it
		}
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}

// words returns the words in a file of a cgroup.
func words(folder, file string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(folder, file))
	return strings.Fields(string(text)), err
}
