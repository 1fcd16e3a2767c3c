# What a new interpreter does first: of the same types as in `multiprocessing`.

from multiprocessing.spawn import (
    freeze_support as freeze_support,
    get_command_line as get_command_line,
    get_executable as get_executable,
    get_preparation_data as get_preparation_data,
    import_main_path as import_main_path,
    is_forking as is_forking,
    old_main_modules as old_main_modules,
    prepare as prepare,
    set_executable as set_executable,
    spawn_main as spawn_main,
    WINEXE as WINEXE,
    WINSERVICE as WINSERVICE,
)
